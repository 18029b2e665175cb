//! What we ask CRIU for a container, held against what its engine asks for the same container: every option of both requests,
//! in many configurations. Where they differ, [`allowed`] has the reason, or the test fails; and it fails as well when they no
//! longer differ there.
//!
//! An engine is a [`Subject`] per configuration: what it sends is heard by listening in, what we would send is planned just
//! before.

mod allowed;
mod configurations;
mod engine;
mod runtime;

use std::fmt;

use criu_client::dry_run::{Difference, differences};
use serde_json::{Map, Value};

use crate::dry_run::sent;
use crate::interposed::Stage;
use crate::support::*;
use allowed::{ALLOWED, Allowed};

/// The options of a request, by name.
pub(crate) type Options = Map<String, Value>;

/// A running container of an engine, in one configuration.
pub(crate) trait Subject {
    /// What we would ask to checkpoint it.
    fn planned_dump(&self) -> Result<Options, String>;

    /// The engine checkpoints it: whether it succeeds.
    fn dump(&mut self) -> Result<bool, String>;

    /// What we would ask to restore what the engine has just checkpointed; none where we have the engine restore.
    fn planned_restore(&self) -> Result<Option<Options>, String>;

    /// The engine restores it: whether it succeeds.
    fn restore(&mut self) -> Result<bool, String>;

    /// Ends the container.
    fn end(&mut self) -> Outcome;

    /// What is different in every run, and the words that stand for it in the table.
    fn names(&self) -> Vec<(String, &'static str)>;
}

/// How far an engine comes by itself in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaches {
    /// It asks for a dump, which fails.
    Dump,
    /// It asks for a restore, which fails.
    Restore,
    /// Both succeed.
    End,
}

/// A configuration of an engine.
pub(crate) struct Case {
    pub(crate) engine: &'static str,
    pub(crate) configuration: &'static str,
    pub(crate) reaches: Reaches,
    pub(crate) make: Box<Make>,
}

/// Starts the container of a case, with what listens in first on its engine's path.
pub(crate) type Make = dyn Fn(&Stage) -> Result<Box<dyn Subject>, String> + Send;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Dump,
    Restore,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
        })
    }
}

pub(crate) fn tests() -> Tests {
    let mut tests: Tests = Vec::new();
    let mut cases = runtime::cases();
    cases.extend(engine::cases());
    let known: Vec<_> = cases
        .iter()
        .map(|case| (case.engine, case.configuration))
        .collect();
    tests.push((
        "conformance/the-table-is-sound".into(),
        Box::new(move || sound(&known)),
    ));
    for case in cases {
        tests.push((
            format!("conformance/{}/{}", case.engine, case.configuration),
            Box::new(move || conforms(&case)),
        ));
    }
    tests
}

/// Every row has a reason, and a case in which it can be seen.
fn sound(cases: &[(&str, &str)]) -> Outcome {
    for row in ALLOWED {
        ensure!(!row.reason.is_empty(), "{row:?} has no reason");
        let seen = cases
            .iter()
            .any(|(engine, configuration)| row.is_for(engine, configuration, row.side));
        ensure!(seen || row.cgroup_v1, "there is no case for {row:?}");
        for named in row.configurations.named() {
            ensure!(
                cases
                    .iter()
                    .any(|(_, configuration)| configuration == named),
                "{named} is no configuration: {row:?}"
            );
        }
    }
    Ok(())
}

fn conforms(case: &Case) -> Outcome {
    let stage = Stage::install(&[])?;
    let mut subject = (case.make)(&stage)?;
    let mut problems = Vec::new();
    let planned = subject.planned_dump()?;
    let dumped = subject.dump()?;
    let heard = sent(&stage, "DUMP")?;
    problems.extend(compare(case, Side::Dump, &*subject, &planned, &heard));
    ensure!(
        dumped == (case.reaches != Reaches::Dump),
        "whether its own dump succeeds: {dumped}; {problems:#?}"
    );
    let planned = match dumped {
        true => subject.planned_restore()?,
        false => None,
    };
    if let Some(planned) = planned {
        let restored = subject.restore()?;
        let heard = sent(&stage, "RESTORE")?;
        problems.extend(compare(case, Side::Restore, &*subject, &planned, &heard));
        ensure!(
            restored == (case.reaches == Reaches::End),
            "whether its own restore succeeds: {restored}; {problems:#?}"
        );
    }
    subject.end()?;
    ensure!(problems.is_empty(), "ours | its own: {problems:#?}");
    Ok(())
}

/// Differences without a reason, and reasons without a difference.
fn compare(
    case: &Case,
    side: Side,
    subject: &dyn Subject,
    ours: &Options,
    theirs: &Options,
) -> Vec<String> {
    let names = subject.names();
    let named = |text: &str| {
        let mut text = text.to_owned();
        for (what, name) in &names {
            text = text.replace(what, name);
        }
        text
    };
    let found: Vec<Difference> = differences(ours, theirs);
    let found: Vec<(String, String, String)> = found
        .iter()
        .map(|difference| {
            let value = |value: &Option<String>| value.as_deref().map_or("-".into(), named);
            (
                named(&difference.option),
                value(&difference.first),
                value(&difference.second),
            )
        })
        .collect();
    let rows: Vec<&Allowed> = ALLOWED
        .iter()
        .filter(|row| row.is_for(case.engine, case.configuration, side))
        .collect();
    let fits = |row: &Allowed, option: &str, (found, first, second): &(String, String, String)| {
        allowed::matches(option, found)
            && allowed::matches(row.ours, first)
            && allowed::matches(row.theirs, second)
    };
    // One for each option of a row.
    let rows: Vec<(&Allowed, &str)> = rows
        .into_iter()
        .flat_map(|row| row.options.iter().map(move |option| (row, *option)))
        .collect();
    let mut problems = Vec::new();
    for difference in &found {
        let (option, first, second) = difference;
        let fitting = rows
            .iter()
            .filter(|(row, option)| fits(row, option, difference));
        match fitting.count() {
            1 => {}
            0 => problems.push(format!("{side}: {option}: {first} | {second}")),
            rows => problems.push(format!(
                "{side}: {rows} rows for {option}: {first} | {second}"
            )),
        }
    }
    for (row, option) in rows {
        if !found.iter().any(|difference| fits(row, option, difference)) {
            problems.push(format!("{side}: {option} no longer differs: {row:?}"));
        }
    }
    problems
}
