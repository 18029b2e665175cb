//! systemd, asked over D-Bus: it starts a container's scope and ends it.
//!
//! ```text
//! us                                   systemd
//! ── StartTransientUnit(unit, "fail", properties with the pid of a seat) ──▶   ◀── JobRemoved(job, unit, "done") ──
//! ── Get(unit, InvocationID) ──▶                     which tells this unit from a later one of the same name
//! ── StopUnit(unit, "replace") ──▶   ◀── JobRemoved ──   ── ResetFailedUnit(unit) ──▶
//! ```
//!
//! Over the system bus, or, where there is none, over systemd's own socket for root.

use std::path::Path;
use std::time::Duration;

use super::properties::{Property, Value};
use super::scope::Scope;
use crate::container::error::ErrorKind;

/// What a unit is told from a later one of the same name by.
pub(crate) type Invocation = Vec<u8>;

/// How long systemd may take for anything.
const LIMIT: Duration = Duration::from_secs(30);

/// Why systemd cannot be asked for a scope here.
pub(crate) fn missing() -> Option<&'static str> {
    let runs = Path::new("/run/systemd/system").is_dir()
        // A process's number means the same to systemd only where that is the first one.
        && std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd");
    if !runs {
        return Some("systemd does not run here");
    }
    if !cfg!(feature = "systemd") {
        return Some("this program was built without the feature `systemd`");
    }
    None
}

/// Refuses a unit that is there already.
pub(crate) async fn is_free(scope: &Scope) -> Result<(), ErrorKind> {
    // One that has failed is there until somebody looks at it, and is cleared away when the new one is started.
    match limited(scope, bus::is_active(&scope.unit)).await? {
        false => Ok(()),
        true => Err(ErrorKind::Systemd {
            unit: scope.unit.clone(),
            problem: "is there already: end what is in it (`systemctl stop` and its name), or restore under another name"
                .into(),
            source: None,
        }),
    }
}

/// Starts a scope with a process in it.
pub(crate) async fn start(
    scope: &Scope,
    description: &str,
    pid: u32,
    unified: bool,
    properties: Vec<Property>,
) -> Result<Invocation, ErrorKind> {
    let text = |text: &str| Value::Text(text.to_owned());
    let input_output = match unified {
        true => "IOAccounting",
        false => "BlockIOAccounting",
    };
    let mut all: Vec<Property> = [
        ("Description", text(description)),
        ("Slice", text(&scope.slice)),
        ("Delegate", Value::Flag(true)),
        ("PIDs", Value::Pids(vec![pid])),
        ("MemoryAccounting", Value::Flag(true)),
        ("CPUAccounting", Value::Flag(true)),
        (input_output, Value::Flag(true)),
        ("TasksAccounting", Value::Flag(true)),
        ("DefaultDependencies", Value::Flag(false)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    all.extend(properties);
    limited(scope, bus::start(&scope.unit, all)).await
}

/// Stops a unit, if it is there; of an `invocation` only that one. Whatever still runs in it is ended.
pub(crate) async fn stop(unit: &str, invocation: Option<&[u8]>) -> Result<(), ErrorKind> {
    let scope = Scope {
        unit: unit.to_owned(),
        slice: String::new(),
    };
    limited(&scope, bus::stop(unit, invocation)).await
}

/// [`stop`] for those who block.
pub(crate) fn stop_now(unit: &str, invocation: Option<&[u8]>) -> Result<(), ErrorKind> {
    let stopped = std::thread::scope(|scope| {
        let stop = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(ErrorKind::system("making a runtime to ask systemd with"))?;
            runtime.block_on(stop(unit, invocation))
        };
        // Whoever blocks may do so within a runtime, in which none can be waited for.
        scope.spawn(stop).join()
    });
    stopped.unwrap_or_else(|_| {
        Err(ErrorKind::system("asking systemd")(std::io::Error::other(
            "a thread has panicked",
        )))
    })
}

async fn limited<T>(
    scope: &Scope,
    asked: impl Future<Output = Result<T, bus::Problem>>,
) -> Result<T, ErrorKind> {
    let unit = scope.unit.clone();
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err((problem, source))) => Err(ErrorKind::Systemd {
            unit,
            problem,
            source,
        }),
        Err(_) => Err(ErrorKind::Systemd {
            unit,
            problem: format!("systemd has not answered within {LIMIT:?}"),
            source: None,
        }),
    }
}

#[cfg(not(feature = "systemd"))]
mod bus {
    //! Nobody asks, see [`missing`](super::missing).

    use super::{Invocation, Property};

    pub(super) type Problem = (String, Option<Box<dyn std::error::Error + Send + Sync>>);

    fn absent<T>() -> Result<T, Problem> {
        Err((super::missing().unwrap_or_default().into(), None))
    }

    pub(super) async fn is_active(_: &str) -> Result<bool, Problem> {
        absent()
    }

    pub(super) async fn start(_: &str, _: Vec<Property>) -> Result<Invocation, Problem> {
        absent()
    }

    pub(super) async fn stop(_: &str, _: Option<&[u8]>) -> Result<(), Problem> {
        absent()
    }
}

#[cfg(feature = "systemd")]
mod bus {
    //! The words on the wire.

    use std::pin::Pin;

    use zbus::export::futures_core::Stream;
    use zbus::message::Type;
    use zbus::zvariant::{self, DynamicType, OwnedObjectPath, OwnedValue};
    use zbus::{Connection, MatchRule, Message, MessageStream};

    use super::{Invocation, Property, Value};

    const NAME: &str = "org.freedesktop.systemd1";
    const PATH: &str = "/org/freedesktop/systemd1";
    const MANAGER: &str = "org.freedesktop.systemd1.Manager";
    const UNIT: &str = "org.freedesktop.systemd1.Unit";
    const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
    const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
    const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
    /// systemd's own socket, where only root is let in.
    const PRIVATE: &str = "unix:path=/run/systemd/private";

    /// What is wrong, and the reader's own words.
    pub(super) type Problem = (String, Option<Box<dyn std::error::Error + Send + Sync>>);

    fn failed(problem: &str) -> impl FnOnce(zbus::Error) -> Problem {
        let problem = problem.to_owned();
        move |error| (problem, Some(Box::new(error)))
    }

    struct Manager {
        connection: Connection,
        /// None over systemd's own socket.
        name: Option<&'static str>,
    }

    impl Manager {
        async fn connect() -> Result<Self, Problem> {
            let on_bus = match Connection::system().await {
                Ok(connection) => {
                    return Ok(Self {
                        connection,
                        name: Some(NAME),
                    });
                }
                Err(error) => error,
            };
            let private = async {
                let builder = zbus::connection::Builder::address(PRIVATE)?;
                builder.p2p().build().await
            };
            match private.await {
                Ok(connection) => Ok(Self {
                    connection,
                    name: None,
                }),
                Err(_) => Err(failed("systemd cannot be reached over D-Bus")(on_bus)),
            }
        }

        async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
        where
            B: serde::Serialize + DynamicType,
        {
            self.connection
                .call_method(self.name, PATH, Some(MANAGER), method, body)
                .await
        }

        /// The unit's object; `None` when there is no such unit.
        async fn unit(&self, unit: &str) -> Result<Option<OwnedObjectPath>, Problem> {
            let found = match self.call("GetUnit", &unit).await {
                Ok(message) => message.body().deserialize().map(Some),
                Err(error) if is(&error, NO_SUCH_UNIT) => Ok(None),
                Err(error) => Err(error),
            };
            found.map_err(failed("systemd does not say whether it is there"))
        }

        /// A property of a unit's; `None` when the unit is there no more.
        async fn property<T>(
            &self,
            unit: &OwnedObjectPath,
            name: &str,
        ) -> Result<Option<T>, Problem>
        where
            T: TryFrom<OwnedValue>,
            zbus::Error: From<T::Error>,
        {
            let asked = async {
                let wanted = (UNIT, name);
                let call = self.connection.call_method(
                    self.name,
                    unit.as_str(),
                    Some(PROPERTIES),
                    "Get",
                    &wanted,
                );
                let value: OwnedValue = call.await?.body().deserialize()?;
                Ok::<_, zbus::Error>(T::try_from(value)?)
            };
            match asked.await {
                Ok(value) => Ok(Some(value)),
                Err(error) if is(&error, NO_SUCH_UNIT) || is_unknown(&error) => Ok(None),
                Err(error) => Err(failed(&format!("systemd does not tell its {name}"))(error)),
            }
        }

        /// What becomes of jobs, from now on.
        async fn jobs(&self) -> Result<Jobs, Problem> {
            let jobs = async {
                // Over the bus, systemd sends nothing unless somebody has asked for it.
                if self.name.is_some() {
                    self.call("Subscribe", &()).await?;
                }
                let rule = MatchRule::builder()
                    .msg_type(Type::Signal)
                    .interface(MANAGER)?
                    .member("JobRemoved")?
                    .build();
                MessageStream::for_match_rule(rule, &self.connection, None).await
            };
            jobs.await
                .map(Jobs)
                .map_err(failed("systemd does not tell what becomes of its jobs"))
        }
    }

    struct Jobs(MessageStream);

    impl Jobs {
        /// Waits for a job's end.
        async fn ended(&mut self, job: &OwnedObjectPath) -> Result<(), Problem> {
            loop {
                let next = std::future::poll_fn(|context| Pin::new(&mut self.0).poll_next(context));
                let message = match next.await {
                    None => return Err(("systemd has hung up".into(), None)),
                    Some(message) => message.map_err(failed("systemd is not understood"))?,
                };
                let body = message.body();
                let told: zbus::Result<(u32, OwnedObjectPath, String, String)> = body.deserialize();
                match told {
                    Ok((_, ended, _, result)) if ended == *job => {
                        return match result.as_str() {
                            "done" => Ok(()),
                            result => Err((
                                format!("systemd says of its job: {result}; its journal has more"),
                                None,
                            )),
                        };
                    }
                    Ok(_) => {}
                    Err(error) => return Err(failed("systemd is not understood")(error)),
                }
            }
        }
    }

    fn is(error: &zbus::Error, wanted: &str) -> bool {
        matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == wanted)
    }

    /// The object of a unit that has gone meanwhile.
    fn is_unknown(error: &zbus::Error) -> bool {
        is(error, "org.freedesktop.DBus.Error.UnknownObject")
            || is(error, "org.freedesktop.DBus.Error.UnknownInterface")
            || is(error, "org.freedesktop.DBus.Error.UnknownMethod")
    }

    fn value(value: &Value) -> zvariant::Value<'_> {
        match value {
            Value::Text(value) => value.as_str().into(),
            Value::Flag(value) => (*value).into(),
            Value::Number(value) => (*value).into(),
            Value::Signed(value) => (*value).into(),
            Value::Short(value) => (*value).into(),
            Value::ShortSigned(value) => (*value).into(),
            Value::Bytes(value) => value.clone().into(),
            Value::Texts(value) => value.clone().into(),
            Value::Pids(value) => value.clone().into(),
            Value::Devices(value) => value.clone().into(),
        }
    }

    /// Whether a unit is there and has not ended.
    pub(super) async fn is_active(unit: &str) -> Result<bool, Problem> {
        let manager = Manager::connect().await?;
        let Some(object) = manager.unit(unit).await? else {
            return Ok(false);
        };
        let state: Option<String> = manager.property(&object, "ActiveState").await?;
        Ok(state.is_some_and(|state| state != "inactive" && state != "failed"))
    }

    pub(super) async fn start(
        unit: &str,
        properties: Vec<Property>,
    ) -> Result<Invocation, Problem> {
        let manager = Manager::connect().await?;
        let mut jobs = manager.jobs().await?;
        let properties: Vec<(&str, zvariant::Value<'_>)> = properties
            .iter()
            .map(|(name, told)| (name.as_str(), value(told)))
            .collect();
        type Auxiliary<'a> = Vec<(&'a str, Vec<(&'a str, zvariant::Value<'a>)>)>;
        let body = (unit, "fail", &properties, Auxiliary::new());
        // One that has failed keeps its name until it is reset; of any other nothing is reset.
        let asked = match manager.call("StartTransientUnit", &body).await {
            Err(error) if is(&error, EXISTS) => {
                let _ = manager.call("ResetFailedUnit", &unit).await;
                manager.call("StartTransientUnit", &body).await
            }
            asked => asked,
        };
        let refused = "systemd does not start it";
        let asked = asked.map_err(failed(refused))?;
        let job = asked.body().deserialize().map_err(failed(refused))?;
        jobs.ended(&job).await?;
        let gone = || ("it was gone as soon as it was started".to_owned(), None);
        let object = manager.unit(unit).await?.ok_or_else(gone)?;
        let invocation = manager.property(&object, "InvocationID").await?;
        invocation.ok_or_else(gone)
    }

    pub(super) async fn stop(unit: &str, invocation: Option<&[u8]>) -> Result<(), Problem> {
        let manager = Manager::connect().await?;
        let Some(object) = manager.unit(unit).await? else {
            return Ok(());
        };
        if let Some(wanted) = invocation {
            let found: Option<Invocation> = manager.property(&object, "InvocationID").await?;
            if found.as_deref() != Some(wanted) {
                return Ok(());
            }
        }
        let mut jobs = manager.jobs().await?;
        match manager.call("StopUnit", &(unit, "replace")).await {
            Ok(message) => {
                let refused = failed("systemd does not stop it");
                let job = message.body().deserialize().map_err(refused)?;
                jobs.ended(&job).await?;
            }
            // It has gone meanwhile.
            Err(error) if is(&error, NO_SUCH_UNIT) => {}
            Err(error) => return Err(failed("systemd does not stop it")(error)),
        }
        // One that has failed keeps its name; of what has not, or is not there, there is nothing to reset.
        let _ = manager.call("ResetFailedUnit", &unit).await;
        Ok(())
    }
}
