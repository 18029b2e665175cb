use std::borrow::Cow;

/// An option that CRIU would refuse, ignore or misread, found before anything was sent.
///
/// No process was started and no task was touched: the request can be corrected and made again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {value:?} {problem}: {remedy}")]
pub struct InvalidOption {
    option: &'static str,
    value: String,
    problem: &'static str,
    remedy: Cow<'static, str>,
}

impl InvalidOption {
    pub(crate) fn new(
        option: &'static str,
        value: impl Into<String>,
        problem: &'static str,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            option,
            value: value.into(),
            problem,
            remedy: remedy.into(),
        }
    }

    /// CRIU's long name of the option, without the dashes; the name of the protocol field where CRIU's command line has
    /// no such option.
    #[must_use]
    pub fn option(&self) -> &str {
        self.option
    }

    /// The value that was given, as text.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// What is wrong with the value.
    #[must_use]
    pub fn problem(&self) -> &str {
        self.problem
    }

    /// What to give instead.
    #[must_use]
    pub fn remedy(&self) -> &str {
        &self.remedy
    }
}
