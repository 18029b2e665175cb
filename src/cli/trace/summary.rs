//! Where the time of each request went.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::CellAlignment;
use serde::Serialize;
use serde_json::{Map, Value};

use criu_client::interpose::recording::{Entry, Event, Side};

use super::super::output::time;
use super::super::report::table;

/// The requests of one session.
#[derive(Default)]
pub(super) struct Summary {
    operations: Vec<Operation>,
    last: u64,
    /// What the engine or a hook is thinking about.
    asked: bool,
}

/// One request that is worth a summary: a dump, a pre-dump or a restore.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Operation {
    session: u32,
    request: String,
    succeeded: Option<bool>,
    /// From the request to the answer.
    total_micros: u64,
    phases: Vec<Phase>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    stats: BTreeMap<String, Value>,
    #[serde(skip)]
    began: u64,
}

/// A stretch of CRIU's work that ends with a callback or the answer, and what was done about the callback.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Phase {
    /// The callback; the answer if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    criu_micros: u64,
    hook_micros: u64,
    engine_micros: u64,
}

impl Summary {
    pub(super) fn take(&mut self, entry: &Entry) {
        let passed = entry.at.saturating_sub(self.last);
        match &entry.event {
            Event::Message {
                from: Side::Engine,
                view,
                ..
            } => {
                let kind = view.get("type").and_then(Value::as_str).unwrap_or_default();
                match kind {
                    "DUMP" | "PRE_DUMP" | "SINGLE_PRE_DUMP" | "RESTORE" => {
                        self.operations.push(Operation {
                            session: entry.session,
                            request: kind.to_owned(),
                            succeeded: None,
                            total_micros: 0,
                            phases: Vec::new(),
                            stats: BTreeMap::new(),
                            began: entry.at,
                        });
                        self.asked = false;
                    }
                    "NOTIFY" => self.replied(passed),
                    // Anything else is a request of its own, and no part of the one before.
                    _ => {}
                }
                self.last = entry.at;
            }
            Event::Message {
                from: Side::Criu,
                view,
                ..
            } => {
                self.reached(view, passed, entry.at);
                self.last = entry.at;
            }
            Event::Hook { took, .. } => {
                if let Some(phase) = self.phase() {
                    phase.hook_micros += took;
                }
                self.last = entry.at;
            }
            Event::Withheld { .. } => {
                self.asked = false;
                self.last = entry.at;
            }
            Event::Stats { stats } => {
                if let (Some(operation), Some(stats)) =
                    (self.operations.last_mut(), stats.as_object())
                {
                    operation.stats = stats.clone().into_iter().collect();
                }
            }
            _ => {}
        }
    }

    fn phase(&mut self) -> Option<&mut Phase> {
        self.operations.last_mut()?.phases.last_mut()
    }

    fn replied(&mut self, passed: u64) {
        if self.asked
            && let Some(phase) = self.phase()
        {
            phase.engine_micros += passed;
        }
        self.asked = false;
    }

    fn reached(&mut self, view: &Map<String, Value>, passed: u64, at: u64) {
        let callback = view
            .get("notify")
            .and_then(|notify| notify.get("script"))
            .and_then(Value::as_str)
            .map(str::to_owned);
        let is_callback = callback.is_some();
        if let Some(operation) = self.operations.last_mut()
            && operation.succeeded.is_none()
        {
            operation.phases.push(Phase {
                until: callback,
                criu_micros: passed,
                ..Phase::default()
            });
            if !is_callback {
                operation.succeeded = view.get("success").and_then(Value::as_bool);
                operation.total_micros = at.saturating_sub(operation.began);
            }
        }
        self.asked = is_callback;
    }

    /// The requests of this session that were seen.
    pub(super) fn operations(self, session: u32) -> Vec<Operation> {
        self.operations
            .into_iter()
            .map(|operation| Operation {
                session,
                ..operation
            })
            .collect()
    }
}

impl Operation {
    pub(super) fn text(&self) -> String {
        let micros = Duration::from_micros;
        let outcome = match self.succeeded {
            Some(true) => "succeeded",
            Some(false) => "failed",
            None => "was not answered",
        };
        let sum = |part: fn(&Phase) -> u64| micros(self.phases.iter().map(part).sum());
        let mut text = format!("\n[{}] {} {outcome}", self.session, self.request);
        // Writing to a String does not fail.
        let _ = write!(
            text,
            " in {}: {} in CRIU, {} in callbacks of the engine, {} in hooks",
            time(micros(self.total_micros)),
            time(sum(|phase| phase.criu_micros)),
            time(sum(|phase| phase.engine_micros)),
            time(sum(|phase| phase.hook_micros)),
        );
        if let Some(frozen) = self.stats.get("frozenTimeMicros").and_then(Value::as_u64) {
            let _ = write!(text, "; tasks frozen for {}", time(micros(frozen)));
        }
        text.push('\n');
        let mut table = table(["until", "CRIU", "engine", "hook"]);
        for phase in &self.phases {
            let shown = |value: u64| match value {
                0 => String::new(),
                value => time(micros(value)),
            };
            table.add_row([
                phase.until.clone().unwrap_or_else(|| "the answer".into()),
                time(micros(phase.criu_micros)),
                shown(phase.engine_micros),
                shown(phase.hook_micros),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let _ = writeln!(text, "{}", table.trim_fmt());
        text
    }
}
