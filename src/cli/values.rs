//! Values as they are written on the command line. Each parser says what is wrong and what to write instead; clap adds
//! the value and the option.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use criu_client::archive;
use criu_client::notify::Script;
use criu_client::options::{Compression, InheritKey, InvalidOption, LogLevel, Lz4};

/// What clap shows after `invalid value '…' for '--option <VALUE>': `.
type Parsed<T> = Result<T, String>;

/// One of the words that stand for an enum of the library: listed in the help, completed by shells.
pub(super) fn words<T>(
    all: &'static [T],
    word: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T>
where
    T: Copy + FromStr<Err = InvalidOption> + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|value| word(*value))).try_map(|word| word.parse())
}

/// A value of the library, with its refusal in a form that does not repeat what clap says already.
pub(super) fn library<T: FromStr<Err = InvalidOption>>(text: &str) -> Parsed<T> {
    text.parse()
        .map_err(|error: InvalidOption| format!("{}: {}", error.problem(), error.remedy()))
}

/// Where large files are that are needed only for a while, as other programs have it.
pub(super) fn scratch() -> PathBuf {
    let given = std::env::var_os("TMPDIR").filter(|path| !path.is_empty());
    given.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// A length of time: a number and a unit, `500ms`, `30s`, `1.5m`, `2h`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "" if !number.is_empty() => {
            return Err(format!("the unit is missing: write {number}s for seconds"));
        }
        _ => return Err("write a number and one of ms, s, m and h, such as 500ms or 30s".into()),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| "write a number before the unit, such as 30s".to_owned())?;
    Duration::try_from_secs_f64(number * seconds)
        .map_err(|_| "that is longer than can be counted".into())
}

/// A limit: a length of time that is not zero.
pub(super) fn limit(text: &str) -> Parsed<Duration> {
    match duration(text)? {
        Duration::ZERO => Err("no time at all: leave the option out for no limit".into()),
        limit => Ok(limit),
    }
}

/// As [`limit`], of the whole operation. CRIU's own option of that name takes bare seconds and limits something else.
pub(super) fn whole_limit(text: &str) -> Parsed<Duration> {
    limit(text).map_err(|error| match text.parse::<f64>() {
        Ok(_) => format!(
            "{error}; --timeout limits the whole operation, what criu calls --timeout is `checkpoint --freeze-timeout {text}s`"
        ),
        Err(_) => error,
    })
}

/// A number of bytes, with CRIU's suffixes K, M and G.
pub(super) fn size(text: &str) -> Parsed<u64> {
    let (number, shift) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 20),
            None => match text.strip_suffix(['G', 'g']) {
                Some(number) => (number, 30),
                None => (text, 0),
            },
        },
    };
    let malformed =
        || "write a number of bytes, or one with K, M or G behind it, such as 4M".to_owned();
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let number: u64 = number.parse().map_err(|_| malformed())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "that is more than can be counted".into())
}

/// CRIU's log level, as its number or its name.
pub(super) fn log_level(text: &str) -> Parsed<LogLevel> {
    let numbered = text
        .parse::<usize>()
        .ok()
        .and_then(|number| LogLevel::ALL.get(number));
    match numbered {
        Some(level) => Ok(*level),
        None => text.parse().map_err(|_| {
            let names: Vec<&str> = LogLevel::ALL.iter().map(|level| level.as_str()).collect();
            format!("write 0 to 4, or one of {}", names.join(", "))
        }),
    }
}

/// A host and a port, as `HOST:PORT` or `[ADDRESS]:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPort {
    pub(super) host: String,
    pub(super) port: u16,
}

pub(super) fn host_port(text: &str) -> Parsed<HostPort> {
    const FORM: &str = "write HOST:PORT, or [ADDRESS]:PORT for IPv6";
    if text.starts_with("pid:") || text.starts_with("runc:") {
        return Err("this looks like the target: write that before --page-server".into());
    }
    let (name, number) = text.rsplit_once(':').ok_or(FORM)?;
    let port = port(number).map_err(|error| format!("{number:?}: {error}: {FORM}"))?;
    let bracketed = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let name = match bracketed {
        Some(address) => address,
        None if name.contains(':') => return Err(FORM.into()),
        None => name,
    };
    let host = host(name).map_err(|error| match name {
        "" => format!("the host is missing: {FORM}"),
        _ => format!("{name}: {error}"),
    })?;
    Ok(HostPort { host, port })
}

/// A port that somebody listens on.
pub(super) fn port(text: &str) -> Parsed<u16> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it is no port from 1 to 65535".into()),
        Ok(port) => Ok(port),
    }
}

/// A host that can be connected to.
pub(super) fn host(text: &str) -> Parsed<String> {
    if text.is_empty() {
        return Err("the host is missing".into());
    }
    if text
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_unspecified())
    {
        return Err(
            "it is no host that can be connected to: name the one that the page server runs on"
                .into(),
        );
    }
    Ok(text.to_owned())
}

/// A callback and the program that answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) script: Script,
    pub(super) program: PathBuf,
}

pub(super) fn hook(text: &str) -> Parsed<Hook> {
    let (script, program) = text
        .split_once('=')
        .ok_or("write SCRIPT=PROGRAM, such as post-dump=/usr/local/bin/snapshot")?;
    let script = script.parse().map_err(|_| {
        let known: Vec<String> = Script::known().map(|script| script.to_string()).collect();
        format!(
            "{script:?} is no callback of CRIU: write one of {}",
            known.join(", ")
        )
    })?;
    Ok(Hook {
        script,
        program: program_named(program)?,
    })
}

/// The program of this name: a path when it has a slash, otherwise the first of that name on the PATH.
pub(super) fn program_named(name: &str) -> Parsed<PathBuf> {
    if name.is_empty() {
        return Err("the program is missing".into());
    }
    if name.contains('/') {
        let path = std::path::absolute(name).map_err(|error| format!("{name}: {error}"))?;
        return match is_executable(&path) {
            true => Ok(path),
            false if path.exists() => Err(format!(
                "{name} cannot be executed: chmod +x it, or name another program"
            )),
            false => Err(format!("there is no {name}")),
        };
    }
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(name))
        .find(|path| is_executable(path))
        .ok_or_else(|| format!("there is no program {name} on the PATH: give its path"))
}

/// The PATH, with the directories behind it where administrators' programs are and that a user's PATH often lacks.
pub(super) fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push("/usr/local/sbin:/usr/sbin:/sbin");
    path
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// A root for control groups, `[CONTROLLER:]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CgroupRoot {
    pub(super) controller: Option<String>,
    pub(super) path: PathBuf,
}

pub(super) fn cgroup_root(text: &str) -> Parsed<CgroupRoot> {
    let (controller, path) = match text.split_once(':') {
        Some((controller, path)) if !text.starts_with('/') => (Some(controller), path),
        _ => (None, text),
    };
    if !path.starts_with('/') || controller.is_some_and(str::is_empty) {
        return Err("write /PATH, or CONTROLLER:/PATH".into());
    }
    Ok(CgroupRoot {
        controller: controller.map(str::to_owned),
        path: path.into(),
    })
}

/// A descriptor that was inherited, and what it stands in for: `fd[N]:KEY`.
#[derive(Debug, Clone)]
pub(super) struct Inherit {
    pub(super) fd: i32,
    pub(super) key: InheritKey,
}

pub(super) fn inherit_fd(text: &str) -> Parsed<Inherit> {
    let malformed = || "write fd[NUMBER]:KEY, such as fd[3]:pipe:[4711]".to_owned();
    let (number, key) = text
        .strip_prefix("fd[")
        .and_then(|rest| rest.split_once("]:"))
        .ok_or_else(malformed)?;
    Ok(Inherit {
        fd: descriptor(number).map_err(|_| malformed())?,
        key: library(key)?,
    })
}

/// The number of a descriptor.
pub(super) fn descriptor(text: &str) -> Parsed<i32> {
    match text.parse() {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err("write the number of an open descriptor".into()),
    }
}

/// The inside and the outside of a veth pair, `INSIDE=OUTSIDE[@BRIDGE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VethPair {
    pub(super) inside: String,
    pub(super) outside: String,
    pub(super) bridge: Option<String>,
}

pub(super) fn veth_pair(text: &str) -> Parsed<VethPair> {
    let malformed = || "write INSIDE=OUTSIDE or INSIDE=OUTSIDE@BRIDGE".to_owned();
    let (inside, rest) = text.split_once('=').ok_or_else(malformed)?;
    let (outside, bridge) = match rest.split_once('@') {
        Some((outside, bridge)) => (outside, Some(bridge)),
        None => (rest, None),
    };
    if inside.is_empty() || outside.is_empty() || bridge.is_some_and(str::is_empty) {
        return Err(malformed());
    }
    Ok(VethPair {
        inside: inside.to_owned(),
        outside: outside.to_owned(),
        bridge: bridge.map(str::to_owned),
    })
}

/// An option of one of CRIU's plugins, `PLUGIN.NAME[=VALUE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PluginOption {
    pub(super) plugin: String,
    pub(super) name: String,
    pub(super) value: Option<String>,
}

pub(super) fn plugin_option(text: &str) -> Parsed<PluginOption> {
    let malformed = || "write PLUGIN.NAME or PLUGIN.NAME=VALUE".to_owned();
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let (plugin, name) = name.split_once('.').ok_or_else(malformed)?;
    if plugin.is_empty() || name.is_empty() {
        return Err(malformed());
    }
    Ok(PluginOption {
        plugin: plugin.to_owned(),
        name: name.to_owned(),
        value: value.map(str::to_owned),
    })
}

/// The one namespace that can be left empty; runc calls it `network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EmptyNetwork;

pub(super) fn empty_ns(text: &str) -> Parsed<EmptyNetwork> {
    match text {
        "net" | "network" => Ok(EmptyNetwork),
        _ => Err("only the network namespace can be left empty: write net".into()),
    }
}

/// How `--compress` is written, which CRIU and Podman both have; details of LZ4 are options of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compress {
    /// Pages are stored as they are
    Off,
    /// Blocks of LZ4
    Lz4,
    /// The archive as a whole.
    Archive(archive::Compress),
}

/// A method of either.
pub(super) fn compress(text: &str) -> Parsed<Compress> {
    match text.split_once(':') {
        None if text == "off" => Ok(Compress::Off),
        None if text == "lz4" => Ok(Compress::Lz4),
        None if text == "none" => Ok(Compress::Archive(archive::Compress::None)),
        None if text == "gzip" => Ok(Compress::Archive(archive::Compress::Gzip)),
        None if text == "zstd" => Ok(Compress::Archive(archive::Compress::default())),
        Some(("zstd", level)) => match level.parse() {
            Ok(level @ 1..=19) => Ok(Compress::Archive(archive::Compress::Zstd { level })),
            _ => Err("the level of zstd is a number from 1 to 19".into()),
        },
        _ => Err(
            "write none, gzip, zstd or zstd:LEVEL for an archive, off or lz4 for pages; if this is the target, write it \
             before --compress"
                .into(),
        ),
    }
}

/// The compression that three options ask for together.
pub(super) fn compression(
    compress: Option<Compress>,
    acceleration: Option<u32>,
    block_size: Option<u64>,
) -> Option<Compression> {
    let mut lz4 = Lz4::new();
    if let Some(acceleration) = acceleration {
        lz4 = lz4.acceleration(acceleration);
    }
    if let Some(bytes) = block_size {
        lz4 = lz4.block_size(bytes);
    }
    match compress {
        Some(Compress::Off) => Some(Compression::Off),
        Some(Compress::Lz4) => Some(Compression::Lz4(lz4)),
        Some(Compress::Archive(_)) | None => None,
    }
}

/// A path on this machine, made absolute: CRIU opens it from its own working directory.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err("the path is empty".into());
    }
    std::path::absolute(text).map_err(|error| error.to_string())
}

/// As [`path`], of a file that is there. CRIU takes no notice of a configuration file that is not.
pub(super) fn file(text: &str) -> Parsed<PathBuf> {
    let path = path(text)?;
    match path.is_file() {
        true => Ok(path),
        false => Err("there is no such file".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_client::options::NetworkLock;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert!(duration("30").unwrap_err().contains("30s"));
        for wrong in [
            "",
            "s",
            "5 s",
            "-5s",
            "5d",
            "1.2.3s",
            "999999999999999999999h",
        ] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert!(limit("0ms").is_err());
        assert_eq!(limit("1ms"), Ok(Duration::from_millis(1)));
    }

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("4K"), Ok(4096));
        assert_eq!(size("2m"), Ok(2 << 20));
        assert_eq!(size("1G"), Ok(1 << 30));
        for wrong in [
            "",
            "K",
            "-1",
            "+1",
            "1T",
            "1.5M",
            "99999999999999999999",
            "18446744073709551615G",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn log_levels_by_number_and_name() {
        assert_eq!(log_level("0"), Ok(LogLevel::Silent));
        assert_eq!(log_level("4"), Ok(LogLevel::Debug));
        assert_eq!(log_level("info"), Ok(LogLevel::Info));
        assert!(log_level("5").unwrap_err().contains("warning"));
        assert!(log_level("loud").is_err());
    }

    #[test]
    fn hosts_and_ports() {
        let parsed = host_port("[fe80::1]:27").unwrap();
        assert_eq!((parsed.host.as_str(), parsed.port), ("fe80::1", 27));
        assert_eq!(host_port("node-2:1234").unwrap().host, "node-2");
        for wrong in [
            "node",
            "node:",
            ":1",
            "node:0",
            "node:65536",
            "fe80::1:27",
            "0.0.0.0:27",
            "[::]:27",
        ] {
            assert!(host_port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hooks_name_a_known_callback_and_a_program_that_runs() {
        let parsed = hook("post-dump=true").unwrap();
        assert_eq!(parsed.script, Script::PostDump);
        assert!(parsed.program.is_absolute() && parsed.program.ends_with("true"));
        assert_eq!(
            hook("pre-dump=/bin/true").unwrap().program,
            Path::new("/bin/true")
        );
        let unknown = hook("pre-lunch=true").unwrap_err();
        assert!(
            unknown.contains("pre-lunch") && unknown.contains("pre-dump"),
            "{unknown}"
        );
        assert!(hook("post-dump").unwrap_err().contains("SCRIPT=PROGRAM"));
        assert!(hook("post-dump=").is_err());
        assert!(
            hook("post-dump=/nonexistent/program")
                .unwrap_err()
                .contains("there is no")
        );
        assert!(hook("post-dump=/etc/passwd").unwrap_err().contains("chmod"));
        assert!(
            hook("post-dump=no-such-program-anywhere")
                .unwrap_err()
                .contains("PATH")
        );
    }

    #[test]
    fn cgroup_roots() {
        let parsed = cgroup_root("cpu,cpuacct:/a:b").unwrap();
        assert_eq!(parsed.controller.as_deref(), Some("cpu,cpuacct"));
        assert_eq!(parsed.path, Path::new("/a:b"));
        let parsed = cgroup_root("/a:/b").unwrap();
        assert_eq!(
            (parsed.controller, parsed.path.as_path()),
            (None, Path::new("/a:/b"))
        );
        for wrong in ["", "a", ":/a", "cpu:", "cpu:a"] {
            assert!(cgroup_root(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn inherited_descriptors() {
        let parsed = inherit_fd("fd[3]:pipe:[4711]").unwrap();
        assert_eq!((parsed.fd, parsed.key), (3, InheritKey::Pipe(4711)));
        assert_eq!(
            inherit_fd("fd[0]:var/log/x]:y").unwrap().key.to_string(),
            "var/log/x]:y"
        );
        for wrong in [
            "",
            "fd[3]",
            "fd[]:x",
            "fd[-1]:x",
            "3:x",
            "fd[3]:",
            "fd[3]:pipe:[x]",
            "fd[3]:/var/log",
        ] {
            assert!(inherit_fd(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pairs_and_plugins() {
        let parsed = veth_pair("eth0=veth7@br0").unwrap();
        assert_eq!(
            (parsed.inside.as_str(), parsed.bridge.as_deref()),
            ("eth0", Some("br0"))
        );
        assert_eq!(veth_pair("eth0=veth7").unwrap().bridge, None);
        for wrong in ["eth0", "=veth7", "eth0=", "eth0=v@"] {
            assert!(veth_pair(wrong).is_err(), "{wrong}");
        }
        let parsed = plugin_option("cuda.timeout=a=b").unwrap();
        assert_eq!(
            (parsed.plugin.as_str(), parsed.name.as_str()),
            ("cuda", "timeout")
        );
        assert_eq!(parsed.value.as_deref(), Some("a=b"));
        assert_eq!(plugin_option("cuda.on").unwrap().value, None);
        for wrong in ["cuda", ".x", "cuda.", "=x"] {
            assert!(plugin_option(wrong).is_err(), "{wrong}");
        }
        assert_eq!(empty_ns("network"), Ok(EmptyNetwork));
        assert!(empty_ns("ipc").is_err());
    }

    #[test]
    fn the_librarys_refusals_are_said_once() {
        let refusal = library::<NetworkLock>("ebtables").unwrap_err();
        assert!(
            refusal.contains("iptables") && !refusal.contains("ebtables"),
            "{refusal}"
        );
    }

    #[test]
    fn paths_become_absolute() {
        assert!(path("a/b").unwrap().is_absolute());
        assert!(path("").is_err());
        assert!(file("/nonexistent").is_err());
        assert_eq!(file("/etc/passwd").unwrap(), Path::new("/etc/passwd"));
    }
}
