//! What a verb fails with: how it is told, and the exit status it becomes.

mod text;

use std::error::Error as StdError;
use std::io;
use std::process::ExitCode;

use serde::Serialize;

use criu_client::container;
use criu_client::diagnosis::{Area, Diagnosis};
use criu_client::testing::Departure;
use criu_client::{Error, ErrorKind, OperationKind, TaskState};

use super::output::{Format, Output};
use text::{Text, of_container, of_criu};

/// The exit statuses, which are part of the interface. A restored foreground process passes its own on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Failed = 1,
    Usage = 2,
    Missing = 3,
    HookRefused = 4,
    TimeLimit = 5,
    Interrupted = 130,
}

/// The description of the statuses in the help.
pub(super) const STATUSES: &str = "\
Exit status:
    0  done
    1  failed
    2  wrong usage or bad input
    3  something required is missing: CRIU, a feature of it or of the kernel, a privilege, an engine
    4  a hook refused
    5  the time limit passed
  130  interrupted
A restore that stays in the foreground ends with the status of the restored process, or 128 and its signal's number.
";

/// Why a verb did not do what was asked.
#[derive(Debug)]
pub(super) enum Failure {
    /// The library's error, which tells all there is to tell.
    Criu(Box<Error>),
    /// The container layer's error, with the library's in it where CRIU failed.
    Container(Box<container::Error>),
    /// Found out by the command line itself.
    Own(Box<Own>),
}

/// A failure of the command line itself, in the shape of the library's.
#[derive(Debug)]
pub(super) struct Own {
    status: Status,
    code: &'static str,
    message: String,
    hint: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    operation: Option<OperationKind>,
    tasks: Option<TaskState>,
    diagnosis: Option<Diagnosis>,
    departure: Option<Departure>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Criu(Box::new(error))
    }
}

impl From<container::Error> for Failure {
    fn from(error: container::Error) -> Self {
        Self::Container(Box::new(error))
    }
}

impl Failure {
    fn own(status: Status, code: &'static str, message: impl Into<String>) -> Self {
        Self::Own(Box::new(Own {
            status,
            code,
            message: message.into(),
            hint: None,
            source: None,
            operation: None,
            tasks: None,
            diagnosis: None,
            departure: None,
        }))
    }

    /// The command line cannot be meant like this.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::own(Status::Usage, "usage", message)
    }

    /// Something that the command line names is not there or not what it must be.
    pub(super) fn input(message: impl Into<String>) -> Self {
        Self::own(Status::Usage, "input", message)
    }

    /// Something that is required is missing.
    pub(super) fn missing(message: impl Into<String>) -> Self {
        Self::own(Status::Missing, "missing", message)
    }

    /// It was tried and did not work.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::own(Status::Failed, "failed", message)
    }

    /// A signal ended it.
    pub(super) fn interrupted(signal: &str, operation: OperationKind, tasks: TaskState) -> Self {
        let mut failure = Self::own(
            Status::Interrupted,
            "cancelled",
            format!("the {operation} was cancelled by {signal}"),
        );
        if let Self::Own(own) = &mut failure {
            own.operation = Some(operation);
            own.tasks = Some(tasks);
        }
        failure
    }

    /// An engine took longer than it was given, and this has become of the tasks meanwhile.
    pub(super) fn out_of_time(self, operation: OperationKind, tasks: TaskState) -> Self {
        let mut failure = Self::own(Status::TimeLimit, "time-limit", self.summary());
        if let Self::Own(own) = &mut failure {
            own.operation = Some(operation);
            own.tasks = Some(tasks);
        }
        failure
    }

    /// A signal ended what is no operation of CRIU's.
    pub(super) fn stopped(signal: &str, message: impl std::fmt::Display) -> Self {
        Self::own(
            Status::Interrupted,
            "cancelled",
            format!("{signal}: {message}"),
        )
    }

    /// The client of a replay did otherwise than was recorded.
    pub(super) fn departed(departure: Departure) -> Self {
        let mut failure = Self::own(
            Status::Failed,
            "departed",
            format!("the client departed from the recording: {departure}"),
        );
        if let Self::Own(own) = &mut failure {
            own.departure = Some(departure);
        }
        failure
    }

    /// Adds what can be done about it.
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Own(own) = &mut self {
            own.hint = Some(hint.into());
        }
        self
    }

    /// Adds the known cause behind it.
    pub(super) fn known(mut self, diagnosis: Option<Diagnosis>) -> Self {
        if let Self::Own(own) = &mut self {
            own.diagnosis = diagnosis;
        }
        self
    }

    /// Adds why.
    pub(super) fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        if let Self::Own(own) = &mut self {
            own.source = Some(Box::new(source));
        }
        self
    }

    pub(super) fn is_interrupt(&self) -> bool {
        self.status() == Status::Interrupted
    }

    pub(super) fn is_time_limit(&self) -> bool {
        self.status() == Status::TimeLimit
    }

    /// Corrects what became of the tasks.
    pub(super) fn with_tasks(mut self, state: TaskState) -> Self {
        if let Self::Own(own) = &mut self {
            own.tasks = Some(state);
        }
        self
    }

    /// The exit status that it becomes.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Own(own) => own.status,
            Self::Criu(error) => status_of(error),
            Self::Container(error) => match error.kind() {
                container::ErrorKind::Criu(error) => status_of(error),
                container::ErrorKind::Unknown { .. }
                | container::ErrorKind::InvalidId
                | container::ErrorKind::Ambiguous { .. }
                | container::ErrorKind::Policy(_)
                | container::ErrorKind::Bundle { .. }
                | container::ErrorKind::Images { .. }
                | container::ErrorKind::Option { .. } => Status::Usage,
                container::ErrorKind::Unsupported(_) | container::ErrorKind::Systemd { .. } => {
                    Status::Missing
                }
                container::ErrorKind::Api(error) => status_of_api(error),
                _ => Status::Failed,
            },
        }
    }

    /// It and its causes in one line.
    pub(super) fn summary(&self) -> String {
        let (message, causes) = match self {
            Self::Own(own) => (own.message.clone(), own.chain()),
            Self::Criu(error) => (error.to_string(), chain(StdError::source(error))),
            Self::Container(error) => (error.to_string(), chain(StdError::source(error))),
        };
        [message]
            .into_iter()
            .chain(causes)
            .collect::<Vec<_>>()
            .join(": ")
    }

    /// Tells it: one document, or text on standard error.
    pub(super) fn report(&self, output: &Output) -> ExitCode {
        match output.format {
            Format::Human => self.say(output),
            Format::Json => {
                let written = match self {
                    Self::Criu(error) => output.document("Error", error.as_ref()),
                    Self::Container(error) => match error.criu() {
                        Some(criu) => output.document("Error", &OfContainer::new(error, criu)),
                        None => output.document("Error", error.as_ref()),
                    },
                    Self::Own(own) => output.document("Error", &own.document()),
                };
                if let Err(unwritten) = written {
                    self.say(output);
                    unwritten.say(output);
                }
            }
        }
        ExitCode::from(self.status() as u8)
    }

    /// Tells it as text on standard error.
    pub(super) fn say(&self, output: &Output) {
        let text = match self {
            Self::Criu(error) => of_criu(error, output.verbose),
            Self::Container(error) => of_container(error, output.verbose),
            Self::Own(own) => own.text(),
        };
        output.error(&text);
    }
}

impl Own {
    fn chain(&self) -> Vec<String> {
        let first = self.source.as_deref().map(|source| source as &dyn StdError);
        chain(first)
    }

    fn document(&self) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            code: &'a str,
            message: &'a str,
            chain: Vec<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            hint: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            operation: Option<OperationKind>,
            #[serde(skip_serializing_if = "Option::is_none")]
            tasks: Option<TaskState>,
            #[serde(skip_serializing_if = "Option::is_none")]
            departure: Option<&'a Departure>,
            #[serde(skip_serializing_if = "Option::is_none")]
            findings: Option<Findings<'a>>,
        }
        #[derive(Serialize)]
        struct Findings<'a> {
            diagnosis: &'a Diagnosis,
        }
        Body {
            code: self.code,
            message: &self.message,
            chain: self.chain(),
            hint: self.hint.as_deref(),
            operation: self.operation,
            tasks: self.tasks,
            findings: self
                .diagnosis
                .as_ref()
                .map(|diagnosis| Findings { diagnosis }),
            departure: self.departure.as_ref(),
        }
    }

    fn text(&self) -> String {
        let mut text = Text::new();
        text.error(&self.message, &self.chain());
        if let Some(tasks) = self.tasks {
            text.tasks(tasks);
        }
        if let Some(diagnosis) = &self.diagnosis {
            text.cause(&diagnosis.summary);
        }
        text.hint(self.hint.as_deref());
        text.0
    }
}

/// CRIU's failure within a container operation: the document of any other of CRIU's failures, and whose it is.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OfContainer<'a> {
    engine: container::EngineKind,
    container: &'a str,
    container_left_behind: &'a [String],
    #[serde(flatten)]
    criu: &'a Error,
}

impl<'a> OfContainer<'a> {
    fn new(error: &'a container::Error, criu: &'a Error) -> Self {
        Self {
            engine: error.engine(),
            container: error.id(),
            container_left_behind: error.left_behind(),
            criu,
        }
    }
}

fn status_of_api(error: &container::ApiError) -> Status {
    use container::ApiProblem::{Absent, Connect, Denied, Refused, TimedOut};
    match &error.problem {
        Absent | Refused | Denied | Connect(_) => Status::Missing,
        TimedOut(_) => Status::TimeLimit,
        _ => Status::Failed,
    }
}

fn status_of(error: &Error) -> Status {
    match error.kind() {
        ErrorKind::Start { .. } | ErrorKind::Connect { .. } | ErrorKind::Unsupported { .. } => {
            Status::Missing
        }
        ErrorKind::InvalidOption(_) => Status::Usage,
        ErrorKind::Hook { .. } => Status::HookRefused,
        ErrorKind::TimeLimit { .. } => Status::TimeLimit,
        ErrorKind::Cancelled { .. } => Status::Interrupted,
        ErrorKind::Precondition {
            source: Some(source),
            ..
        } if source.kind() == io::ErrorKind::PermissionDenied => Status::Missing,
        // CRIU tried, and what it lacked is known.
        _ => match error.diagnosis().map(|diagnosis| diagnosis.area) {
            Some(Area::Privileges | Area::Kernel | Area::Build) => Status::Missing,
            _ => Status::Failed,
        },
    }
}

fn chain(mut source: Option<&dyn StdError>) -> Vec<String> {
    let mut chain = Vec::new();
    while let Some(error) = source {
        chain.push(error.to_string());
        source = error.source();
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_failure_tells_its_chain_state_and_hint() {
        let source = io::Error::other("inner");
        let failure = Failure::input("there is no such thing")
            .caused_by(source)
            .hint("make one");
        assert_eq!(failure.status(), Status::Usage);
        let Failure::Own(own) = &failure else {
            panic!("{failure:?}");
        };
        let document = serde_json::to_value(own.document()).unwrap();
        assert_eq!(document["code"], "input");
        assert_eq!(document["chain"][0], "inner");
        assert_eq!(document["hint"], "make one");
        assert_eq!(
            own.text(),
            "error: there is no such thing\n  caused by: inner\nhint: make one\n"
        );
    }

    #[test]
    fn an_interrupt_tells_the_state_of_the_tasks() {
        let failure = Failure::interrupted("SIGINT", OperationKind::Dump, TaskState::Running);
        assert_eq!(failure.status() as u8, 130);
        let Failure::Own(own) = &failure else {
            panic!("{failure:?}");
        };
        assert_eq!(
            own.text(),
            "error: the dump was cancelled by SIGINT\n  tasks: running\n"
        );
        let document = serde_json::to_value(own.document()).unwrap();
        assert_eq!(document["operation"], "dump");
        assert_eq!(document["tasks"], "running");
    }

    #[test]
    fn a_criu_that_is_not_there_is_something_missing() {
        let error = criu_client::Criu::find_in("/nonexistent".as_ref()).unwrap_err();
        let text = of_criu(&error, false);
        assert!(text.contains("hint: install CRIU"), "{text}");
        assert_eq!(Failure::from(error).status(), Status::Missing);
    }

    #[test]
    fn every_status_is_documented() {
        for status in [
            Status::Failed,
            Status::Usage,
            Status::Missing,
            Status::HookRefused,
            Status::TimeLimit,
            Status::Interrupted,
        ] {
            assert!(
                STATUSES.contains(&format!("{:>5}  ", status as u8)),
                "{status:?}"
            );
        }
    }
}
