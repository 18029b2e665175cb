//! `criuctl`: checkpoint and restore processes and containers with CRIU.
// The doc comments of arguments are the text of --help, where brackets and angles mean what they look like.
#![allow(
    rustdoc::broken_intra_doc_links,
    rustdoc::invalid_html_tags,
    rustdoc::bare_urls
)]

mod cli;
mod listening;

fn main() -> std::process::ExitCode {
    cli::run()
}
