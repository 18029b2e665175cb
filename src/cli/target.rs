//! What is checkpointed or restored: `pid:N`, `runc:ID`, `crun:ID`, `docker:ID`, `podman:ID`, `lxc:NAME`, or a bare ID.

use std::fmt;
use std::str::FromStr;

use criu_client::container::EngineKind;

/// A process tree or a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The process tree below this pid.
    Pid(i32),
    /// The container of this id, of that engine if it was named.
    Container(Option<EngineKind>, String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("write pid:N, runc:ID, crun:ID, docker:ID, podman:ID or lxc:NAME".into());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!(
                "for a process write pid:{text}, for a container of that name runc:{text}, crun:{text}, docker:{text}, podman:{text} or lxc:{text}"
            ));
        }
        match text.split_once(':') {
            Some(("pid", number)) => match number.parse() {
                Ok(pid) if pid > 0 => Ok(Self::Pid(pid)),
                _ => Err(format!(
                    "{number:?} is no pid: write pid: and a number, such as pid:4711"
                )),
            },
            Some(("runc", id)) => {
                container_id(id).map(|id| Self::Container(Some(EngineKind::Runc), id))
            }
            Some(("crun", id)) => {
                container_id(id).map(|id| Self::Container(Some(EngineKind::Crun), id))
            }
            Some(("docker", id)) => {
                container_id(id).map(|id| Self::Container(Some(EngineKind::Docker), id))
            }
            Some(("podman", id)) => {
                container_id(id).map(|id| Self::Container(Some(EngineKind::Podman), id))
            }
            Some(("lxc", id)) => {
                container_id(id).map(|id| Self::Container(Some(EngineKind::Lxc), id))
            }
            Some((engine, _)) => Err(format!(
                "{engine:?} is no kind of target: write pid:N, runc:ID, crun:ID, docker:ID, podman:ID or lxc:NAME"
            )),
            None => container_id(text).map(|id| Self::Container(None, id)),
        }
    }
}

/// The characters that runtimes allow in an id. An id becomes the name of a directory.
fn container_id(id: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    match !id.is_empty() && id.bytes().all(allowed) && id != "." && id != ".." {
        true => Ok(id.to_owned()),
        false => Err("a container's id has letters, digits and _ + - . only".into()),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "pid:{pid}"),
            Self::Container(Some(engine), id) => write!(f, "{engine}:{id}"),
            Self::Container(None, id) => f.write_str(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, String> {
        text.parse()
    }

    #[test]
    fn processes_and_containers() {
        assert_eq!(parse("pid:4711"), Ok(Target::Pid(4711)));
        let container = |engine, id: &str| Ok(Target::Container(engine, id.into()));
        assert_eq!(
            parse("runc:web-1"),
            container(Some(EngineKind::Runc), "web-1")
        );
        assert_eq!(parse("crun:w"), container(Some(EngineKind::Crun), "w"));
        assert_eq!(parse("podman:w"), container(Some(EngineKind::Podman), "w"));
        assert_eq!(parse("web_1.a"), container(None, "web_1.a"));
        assert_eq!(parse("lxc:w"), container(Some(EngineKind::Lxc), "w"));
        assert_eq!(parse("docker:w"), container(Some(EngineKind::Docker), "w"));
        for text in [
            "pid:4711",
            "runc:web-1",
            "crun:w",
            "docker:w",
            "podman:w",
            "lxc:w",
            "web_1.a",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn refusals_say_what_to_write() {
        assert!(parse("4711").unwrap_err().contains("pid:4711"));
        assert!(parse("rkt:web").unwrap_err().contains("runc:ID"));
        for wrong in [
            "", "pid:", "pid:0", "pid:-1", "pid:x", "runc:", "crun:", "runc:..", "a/b", "runc:a b",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
