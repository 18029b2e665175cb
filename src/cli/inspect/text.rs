//! Reports as tables and trees. What is in a checkpoint may be anybody's: nothing of it reaches a terminal unchanged that a terminal would obey.

use std::collections::HashMap;
use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table};

use criu_client::inspect::{
    Counted, Form, Process, ProcessFiles, ProcessMemory, ProcessState, Report, Socket, Summary,
    Verification, children,
};

use super::super::output::size;
use super::super::report::{dump_stats, table};

/// Text without what terminals obey.
pub(super) fn shown(text: &str) -> String {
    if !text.chars().any(obeyed) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|character| match obeyed(character) {
            true => character.escape_default().collect::<Vec<_>>(),
            false => vec![character],
        })
        .collect()
}

/// Control characters, and those that change the direction of what follows.
fn obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn optional(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), shown)
}

pub(super) fn report(report: &Report, one_process: bool, only_sockets: bool) -> String {
    let mut parts = vec![summary(&report.summary)];
    let mut part = |name: &str, text: String| {
        let text = if text.is_empty() {
            "none\n".to_owned()
        } else {
            text
        };
        parts.push(format!("{name}\n{text}"));
    };
    if let Some(processes) = &report.processes {
        part("Processes", tree(processes, one_process));
    }
    if let Some(files) = &report.files {
        if !only_sockets {
            part("Open files", open_files(files));
        }
        part("Sockets", sockets(files));
    }
    if report.mounts.is_some() {
        part("Mounts", mounts(report));
    }
    if let Some(namespaces) = &report.namespaces {
        let mut table = table(["KIND", "ID", "PROCESSES", "DETAILS"]);
        for namespace in namespaces {
            let details = shown(&namespace.details.join(", "));
            table.add_row([
                namespace.kind.to_owned(),
                namespace.id.to_string(),
                namespace.processes.to_string(),
                details,
            ]);
        }
        part("Namespaces", of_table(&table, namespaces.len()));
    }
    if report.control_groups.is_some() {
        part("Control groups", control_groups(report));
    }
    if let Some(memory) = &report.memory {
        part("Memory", self::memory(memory, one_process));
        if let Some(shared) = report
            .shared_memory
            .as_ref()
            .filter(|shared| !shared.is_empty())
        {
            let mut table = table(["ID", "IN IMAGES", "IN PARENT", "LAZY"]);
            for one in shared {
                let [present, parent, lazy] = counted(&one.counted);
                table.add_row([shown(&one.id), present, parent, lazy]);
            }
            part("Shared memory", of_table(&table, shared.len()));
        }
    }
    if let Some(stats) = &report.stats {
        part(
            "Statistics of the dump",
            format!("{}\n", dump_stats(stats).trim_fmt()),
        );
    }
    parts.join("\n")
}

fn of_table(table: &Table, rows: usize) -> String {
    match rows {
        0 => String::new(),
        _ => format!("{}\n", table.trim_fmt()),
    }
}

fn summary(summary: &Summary) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<13} {}", shown(&value));
        }
    };
    line("Container", summary.container.clone());
    line("ID", summary.id.clone());
    line("Image", summary.image.clone());
    line("Runtime", summary.runtime.clone());
    line("Engine", summary.engine.clone());
    line("Created", summary.created.clone());
    line("Checkpointed", summary.checkpointed.clone());
    line("Pod", summary.pod.clone());
    line("Namespace", summary.pod_namespace.clone());
    for network in &summary.networks {
        let mut told = format!("{}, {}", network.addresses.join(", "), network.interface);
        if let Some(mac) = &network.mac {
            let _ = write!(told, ", {mac}");
        }
        line("Network", Some(format!("{}: {told}", network.name)));
    }
    line("Architecture", summary.architecture.clone());
    line(
        "Processes",
        summary.processes.map(|count| count.to_string()),
    );
    let parents = summary.image_directories.saturating_sub(1);
    line("Parents", (parents > 0).then(|| parents.to_string()));
    let sizes = &summary.sizes;
    line(
        "Images",
        Some(format!(
            "{}, {} of them memory pages",
            size(sizes.images),
            size(sizes.pages)
        )),
    );
    line(
        "GPU memory",
        (sizes.gpu_pages > 0).then(|| size(sizes.gpu_pages)),
    );
    line("Root changes", sizes.root_fs_diff.map(size));
    line("Volumes", (sizes.volumes > 0).then(|| size(sizes.volumes)));
    line(
        "Form",
        Some(match &summary.form {
            Form::Archive { compression } => format!("archive, compression {compression}"),
            Form::Unpacked => "directory with the content of an archive".to_owned(),
            Form::OciLayout => "OCI image layout".to_owned(),
            _ => "directory of images".to_owned(),
        }),
    );
    if let Some(inventory) = summary
        .inventory
        .as_ref()
        .filter(|inventory| inventory.is_pre_dump())
    {
        let _ = inventory;
        line(
            "Pre-dump",
            Some("a parent for further dumps, which cannot be restored".to_owned()),
        );
    }
    text
}

pub(super) fn verification(verification: &Verification) -> String {
    let mut text = String::new();
    for problem in &verification.problems {
        let _ = writeln!(
            text,
            "{}: {}",
            shown(&problem.file),
            shown(&problem.problem)
        );
    }
    for note in &verification.notes {
        let _ = writeln!(text, "note: {}", shown(note));
    }
    let checksums = match verification.checksums {
        Some(count) => format!(", {count} checksums right"),
        None => String::new(),
    };
    let (images, pages) = (
        verification.images,
        super::super::output::pages(verification.pages),
    );
    let verdict = if verification.good {
        "good"
    } else {
        "not to be restored"
    };
    let _ = writeln!(
        text,
        "{verdict}: {images} images, {pages} in place{checksums}"
    );
    text
}

fn tree(processes: &[Process], one_process: bool) -> String {
    let mut text = String::new();
    if one_process {
        for process in processes {
            describe(&mut text, process, "");
        }
        return text;
    }
    let children = children(processes);
    // Iteratively: a chain of processes may be as long as the image is large.
    let mut waiting: Vec<(&Process, String, bool)> = of_parent(&children, 0)
        .map(|process| (process, String::new(), true))
        .collect();
    waiting.reverse();
    while let Some((process, indent, last)) = waiting.pop() {
        let below = match process.ppid {
            0 => {
                describe(&mut text, process, "");
                String::new()
            }
            _ => {
                let (branch, below) = if last {
                    ("└─ ", "   ")
                } else {
                    ("├─ ", "│  ")
                };
                text.push_str(&indent);
                text.push_str(branch);
                let below = format!("{indent}{below}");
                describe(&mut text, process, &below);
                below
            }
        };
        // Deeper than anybody reads, the indent alone would take all memory.
        let below = if below.len() > 4096 {
            String::new()
        } else {
            below
        };
        let own: Vec<_> = of_parent(&children, process.pid).collect();
        let count = own.len();
        for (index, child) in own.into_iter().enumerate().rev() {
            waiting.push((child, below.clone(), index + 1 == count));
        }
    }
    text
}

fn of_parent<'a>(
    children: &'a HashMap<u32, Vec<&'a Process>>,
    pid: u32,
) -> impl Iterator<Item = &'a Process> {
    children.get(&pid).into_iter().flatten().copied()
}

fn describe(text: &mut String, process: &Process, below: &str) {
    let arguments = process
        .arguments
        .as_ref()
        .filter(|arguments| !arguments.is_empty());
    let line = match arguments {
        Some(arguments) => shown(&arguments.join(" ")),
        None => shown(&process.name),
    };
    let _ = write!(text, "{} {line}", process.pid);
    match process.state {
        ProcessState::Dead => text.push_str(" (ended)"),
        ProcessState::Stopped => text.push_str(" (stopped)"),
        ProcessState::Unknown => text.push_str(" (unknown)"),
        _ => {}
    }
    match process.threads.len() {
        0 => {}
        1 => text.push_str(", 1 more thread"),
        more => {
            let _ = write!(text, ", {more} more threads");
        }
    }
    if let Some(credentials) = process
        .credentials
        .as_ref()
        .filter(|credentials| credentials.euid != 0)
    {
        let _ = write!(text, ", user {}", credentials.euid);
    }
    text.push('\n');
    for variable in process.environment.iter().flatten() {
        let _ = writeln!(text, "{below}     {}", shown(variable));
    }
}

fn open_files(files: &[ProcessFiles]) -> String {
    let mut table = table(["PID", "PROCESS", "FD", "TYPE", "OFFSET", "NAME"]);
    let mut rows = 0;
    let mut row = |process: &ProcessFiles, fd: &str, kind: &str, offset: String, name: &str| {
        table.add_row([
            process.pid.to_string(),
            shown(&process.name),
            fd.to_owned(),
            shown(kind),
            offset,
            shown(name),
        ]);
        rows += 1;
    };
    for process in files {
        for (name, path) in [("cwd", &process.working_directory), ("root", &process.root)] {
            if let Some(path) = path {
                row(process, name, "DIR", "-".to_owned(), path);
            }
        }
        for file in &process.open {
            let offset = file
                .position
                .map_or_else(|| "-".to_owned(), |offset| offset.to_string());
            row(
                process,
                &file.fd.to_string(),
                &file.kind,
                offset,
                &file.name,
            );
        }
    }
    of_table(&table, rows)
}

fn sockets(files: &[ProcessFiles]) -> String {
    let mut table = table([
        "PID", "PROCESS", "FD", "PROTOCOL", "TYPE", "STATE", "LOCAL", "PEER",
    ]);
    let mut rows = 0;
    for process in files {
        for file in &process.open {
            let Some(socket) = &file.socket else { continue };
            let Socket {
                local,
                local_port,
                peer,
                peer_port,
                ..
            } = socket;
            table.add_row([
                process.pid.to_string(),
                shown(&process.name),
                file.fd.to_string(),
                shown(&socket.protocol),
                shown(&socket.socket_type),
                optional(socket.state.as_deref()),
                endpoint(local.as_deref(), *local_port),
                endpoint(peer.as_deref(), *peer_port),
            ]);
            rows += 1;
        }
    }
    of_table(&table, rows)
}

fn endpoint(address: Option<&str>, port: Option<u32>) -> String {
    match (address, port) {
        (None, None) => "-".to_owned(),
        (Some(address), None) => shown(address),
        (Some(address), Some(port)) if address.contains(':') => {
            format!("[{}]:{port}", shown(address))
        }
        (address, Some(port)) => format!("{}:{port}", shown(address.unwrap_or_default())),
    }
}

fn mounts(report: &Report) -> String {
    let mounts = report.mounts.as_deref().unwrap_or_default();
    if mounts.is_empty() {
        let requested = &report.summary.requested_mounts;
        let mut table = table(["MOUNTPOINT", "TYPE", "SOURCE"]);
        for mount in requested {
            table.add_row([
                shown(&mount.destination),
                shown(&mount.kind),
                shown(&mount.source),
            ]);
        }
        return of_table(&table, requested.len());
    }
    let mut table = table(["MOUNTPOINT", "TYPE", "SOURCE", "ROOT", "COMES FROM OUTSIDE"]);
    for mount in mounts {
        // What a bind mount was asked to show, which the mount itself does not know.
        let asked = report
            .summary
            .requested_mounts
            .iter()
            .find(|asked| asked.destination == mount.mountpoint);
        let from = mount.external.as_ref().map(|key| match asked {
            Some(asked) if asked.kind == "bind" => asked.source.clone(),
            _ => key.clone(),
        });
        table.add_row([
            shown(&mount.mountpoint),
            shown(&mount.file_system),
            shown(&mount.source),
            shown(&mount.root),
            optional(from.as_deref()),
        ]);
    }
    of_table(&table, mounts.len())
}

fn control_groups(report: &Report) -> String {
    let Some(all) = &report.control_groups else {
        return String::new();
    };
    let mut text = String::new();
    for membership in &all.memberships {
        for (controller, path) in &membership.groups {
            let _ = writeln!(
                text,
                "in set {}: {} {}",
                membership.id,
                shown(controller),
                shown(path)
            );
        }
    }
    for group in &all.groups {
        let controllers = match group.controllers.iter().all(String::is_empty) {
            true => "version 2".to_owned(),
            false => shown(&group.controllers.join(",")),
        };
        let _ = writeln!(text, "{controllers} {}", shown(&group.path));
        for (name, value) in &group.properties {
            let _ = writeln!(text, "    {} = {}", shown(name), shown(value));
        }
    }
    text
}

fn counted(counted: &Counted) -> [String; 3] {
    [
        size(counted.present),
        size(counted.parent),
        size(counted.lazy),
    ]
}

fn memory(memory: &[ProcessMemory], one_process: bool) -> String {
    if let ([process], true) = (memory, one_process) {
        let mut table = table([
            "ADDRESSES",
            "MODE",
            "KIND",
            "SIZE",
            "IN IMAGES",
            "IN PARENT",
            "LAZY",
            "FILE",
        ]);
        for mapping in &process.mappings {
            let [present, parent, lazy] = counted(&mapping.counted);
            table.add_row([
                format!("{:x}-{:x}", mapping.start, mapping.end),
                mapping.permissions.clone(),
                mapping.kind.to_owned(),
                size(mapping.end.saturating_sub(mapping.start)),
                present,
                parent,
                lazy,
                mapping.file.as_deref().map_or_else(String::new, shown),
            ]);
        }
        right(&mut table, 3..7);
        return of_table(&table, process.mappings.len());
    }
    let mut table = table([
        "PID",
        "PROCESS",
        "MAPPINGS",
        "MAPPED",
        "IN IMAGES",
        "IN PARENT",
        "LAZY",
    ]);
    for process in memory {
        let [present, parent, lazy] = counted(&process.counted);
        table.add_row([
            process.pid.to_string(),
            shown(&process.name),
            process.mappings.len().to_string(),
            size(process.mapped_bytes),
            present,
            parent,
            lazy,
        ]);
    }
    right(&mut table, 2..7);
    of_table(&table, memory.len())
}

fn right(table: &mut Table, columns: std::ops::Range<usize>) {
    for column in table
        .column_iter_mut()
        .skip(columns.start)
        .take(columns.len())
    {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_obey_nothing_of_a_checkpoint() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
        assert_eq!(shown("é ├"), "é ├");
    }

    #[test]
    fn addresses_of_six_words_have_brackets() {
        assert_eq!(endpoint(Some("::1"), Some(80)), "[::1]:80");
        assert_eq!(endpoint(Some("127.0.0.1"), Some(80)), "127.0.0.1:80");
        assert_eq!(endpoint(None, None), "-");
    }
}
