//! Options that are added to an engine's request: `dump:network-lock=skip`.

use std::str::FromStr;

use clap::Parser;

use criu_client::OperationKind;
use criu_client::interpose::Amendment;

use super::super::checkpoint_args::Checkpoint;
use super::super::failure::Failure;
use super::super::restore_args::Restore;

/// One option for one operation, under the name that `criuctl checkpoint` or `criuctl restore` has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Amend {
    operation: OperationKind,
    /// Without its dashes.
    option: String,
}

const FORM: &str = "write OPERATION:OPTION[=VALUE], such as dump:network-lock=skip; operations are dump, pre-dump and restore";

impl FromStr for Amend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (operation, option) = text.split_once(':').ok_or(FORM)?;
        let operation = match operation {
            "dump" => OperationKind::Dump,
            "pre-dump" => OperationKind::PreDump,
            "restore" => OperationKind::Restore,
            _ => return Err(FORM.into()),
        };
        let amend = Self {
            operation,
            option: option.trim_start_matches('-').to_owned(),
        };
        // By itself it need not do (an option may require another), but it must be known.
        amend.parsed(&[])?;
        Ok(amend)
    }
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct OfDump {
    #[command(flatten)]
    checkpoint: Checkpoint,
}

#[derive(Parser)]
#[command(no_binary_name = true)]
struct OfRestore {
    #[command(flatten)]
    restore: Restore,
}

/// The options of one operation, taken apart.
enum Parsed {
    Checkpoint(Box<Checkpoint>),
    Restore(Box<Restore>),
}

impl Amend {
    /// This and others of the same operation, as if they had been given to the verb.
    fn parsed(&self, others: &[&Self]) -> Result<Parsed, String> {
        // What the verbs cannot do without; the engine's own request has it.
        let mut words = vec!["pid:1".to_owned(), "--image-path=/".to_owned()];
        if self.operation == OperationKind::PreDump {
            words.push("--pre-dump".into());
        }
        let all = [self].into_iter().chain(others.iter().copied());
        words.extend(all.map(|amend| format!("--{}", amend.option)));
        let shown = |error: clap::Error| {
            let text = error.to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            text.lines().next().unwrap_or_default().to_owned()
        };
        let (parsed, has_arguments) = match self.operation {
            OperationKind::Restore => {
                let restore = OfRestore::try_parse_from(words).map_err(shown)?.restore;
                let arguments = restore.program_arguments();
                (Parsed::Restore(restore.into()), !arguments.is_empty())
            }
            _ => {
                let checkpoint = OfDump::try_parse_from(words).map_err(shown)?.checkpoint;
                let arguments = checkpoint.program_arguments();
                (Parsed::Checkpoint(checkpoint.into()), !arguments.is_empty())
            }
        };
        match has_arguments {
            true => Err(format!(
                "--{} is no part of a request: CRIU takes it on its command line only",
                self.option
            )),
            false => Ok(parsed),
        }
    }

    /// One amendment for each operation that has any.
    pub(in crate::cli) fn all(amends: &[Self]) -> Result<Vec<Amendment>, Failure> {
        [
            OperationKind::Dump,
            OperationKind::PreDump,
            OperationKind::Restore,
        ]
        .into_iter()
        .filter_map(|operation| Self::of(amends, operation).transpose())
        .collect()
    }

    /// The amendment of one operation, if there is any.
    pub(in crate::cli) fn of(
        amends: &[Self],
        operation: OperationKind,
    ) -> Result<Option<Amendment>, Failure> {
        let wanted: Vec<&Self> = amends
            .iter()
            .filter(|amend| amend.operation == operation)
            .collect();
        let Some((first, others)) = wanted.split_first() else {
            return Ok(None);
        };
        let usage = |problem: String| Failure::usage(format!("--amend: {problem}"));
        let amendment = match first.parsed(others).map_err(usage)? {
            Parsed::Restore(restore) => Amendment::restore(restore.options()?),
            Parsed::Checkpoint(checkpoint) if operation == OperationKind::PreDump => {
                Amendment::pre_dump(checkpoint.pre_dump_options()?)
            }
            Parsed::Checkpoint(checkpoint) => Amendment::dump(checkpoint.dump_options()?),
        };
        let amendment = amendment.map_err(|invalid| usage(invalid.to_string()))?;
        match amendment.options().is_empty() {
            true => Err(usage(format!(
                "--{} has no effect on a {operation}'s request",
                first.option
            ))),
            false => Ok(Some(amendment)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amend(text: &str) -> Result<Amend, String> {
        text.parse()
    }

    #[test]
    fn options_of_the_verbs_become_amendments() {
        let all = [
            "dump:network-lock=skip",
            "dump:--external=mnt[/x]:x",
            "restore:tcp-close",
            "pre-dump:log-level=4",
        ]
        .map(|text| amend(text).unwrap());
        let amendments = Amend::all(&all).unwrap();
        let shown: Vec<String> = amendments
            .iter()
            .map(|amendment| serde_json::Value::from(amendment.options()).to_string())
            .collect();
        assert_eq!(
            shown,
            [
                r#"{"external":["mnt[/x]:x"],"network_lock":"SKIP"}"#,
                r#"{"log_level":4}"#,
                r#"{"tcp_close":true}"#,
            ]
        );
    }

    #[test]
    fn what_cannot_be_amended_is_refused_with_the_reason() {
        for (wrong, reason) in [
            ("network-lock=skip", "OPERATION:OPTION"),
            ("check:tcp-close", "operations are"),
            ("dump:no-such-option", "--no-such-option"),
            ("dump:network-lock=sometimes", "sometimes"),
            ("restore:ghost-limit=1M", "--ghost-limit"),
            ("dump:no-default-config", "command line only"),
        ] {
            let error = amend(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
        let hook = [amend("dump:display-stats").unwrap()];
        assert!(Amend::all(&hook).is_err());
    }
}
