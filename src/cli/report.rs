//! Reports as text for people.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table};

use criu_client::image::{DumpStats, RestoreStats};
use criu_client::{Details, TaskState, Timings};

use super::output::{Output, pages, time};

/// What the report of any operation has besides its first lines: phases and warnings for those who want to know more.
pub(super) fn details(output: &Output, text: &mut String, details: &Details) {
    if output.verbose {
        let _ = writeln!(text, "{}", phases(&details.timings).trim_fmt());
        if let Some(log) = &details.log {
            let _ = writeln!(
                text,
                "log of CRIU {}: {}",
                details.criu_version,
                log.display()
            );
        }
        for warning in &details.warnings {
            let _ = writeln!(text, "  {warning}");
        }
    }
}

/// Refusals that came too late are no part of the result, but somebody must see them.
pub(super) fn ignored_refusals(output: &Output, details: &Details) {
    for ignored in &details.ignored_refusals {
        output.warn(format_args!(
            "the {} hook came too late to stop anything: {}",
            ignored.script, ignored.reason
        ));
    }
}

/// Where the time went, phase by phase.
fn phases(timings: &Timings) -> Table {
    let mut table = table(["until", "CRIU", "hook"]);
    for phase in &timings.phases {
        let until = phase
            .until
            .as_ref()
            .map_or("the answer", |script| script.as_str());
        let hook = match phase.hook.is_zero() {
            true => String::new(),
            false => time(phase.hook),
        };
        table.add_row([until.to_owned(), time(phase.criu), hook]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// CRIU's figures of a dump, one per line.
pub(super) fn dump_stats(stats: &DumpStats) -> Table {
    let mut table = table(["statistic", "value"]);
    table.add_row(["freezing".to_owned(), time(stats.freezing_time)]);
    table.add_row(["frozen".to_owned(), time(stats.frozen_time)]);
    table.add_row(["memory dumped in".to_owned(), time(stats.memdump_time)]);
    table.add_row(["memory written in".to_owned(), time(stats.memwrite_time)]);
    if let Some(irmap) = stats.irmap_resolve {
        table.add_row(["watched files resolved in".to_owned(), time(irmap)]);
    }
    table.add_row(["scanned".to_owned(), pages(stats.pages_scanned)]);
    table.add_row([
        "unchanged since the parent".to_owned(),
        pages(stats.pages_skipped_parent),
    ]);
    table.add_row(["written".to_owned(), pages(stats.pages_written)]);
    table.add_row(["lazy".to_owned(), pages(stats.pages_lazy)]);
    let shared = [
        ("shared, scanned", stats.shpages_scanned),
        ("shared, unchanged", stats.shpages_skipped_parent),
        ("shared, written", stats.shpages_written),
    ];
    for (name, value) in shared {
        if let Some(value) = value {
            table.add_row([name.to_owned(), pages(value)]);
        }
    }
    table
}

/// CRIU's figures of a restore, one per line.
pub(super) fn restore_stats(stats: &RestoreStats) -> Table {
    let mut table = table(["statistic", "value"]);
    table.add_row(["forking".to_owned(), time(stats.forking_time)]);
    table.add_row(["restoring".to_owned(), time(stats.restore_time)]);
    table.add_row(["compared".to_owned(), pages(stats.pages_compared)]);
    table.add_row([
        "left as they were forked".to_owned(),
        pages(stats.pages_skipped_cow),
    ]);
    if let Some(restored) = stats.pages_restored {
        table.add_row(["restored".to_owned(), pages(restored)]);
    }
    table
}

/// A table without lines, which can be cut into columns by other programs as well.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// What became of the tasks of a checkpoint.
pub(super) fn fate(tasks: TaskState) -> &'static str {
    match tasks {
        TaskState::Running => "the tasks run on",
        TaskState::Stopped => "the tasks are stopped",
        TaskState::Absent => "the tasks are ended",
        TaskState::Frozen => "the tasks are frozen",
        _ => "the state of the tasks is not known",
    }
}
