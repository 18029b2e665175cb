//! `page-server`

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use criu_client::options::{PageServerOptions, PageTransport};
use criu_client::{Criu, ImagesDir, OperationKind, TaskState};

use super::Context;
use super::checkpoint::has_parent;
use super::descriptors::inherited;
use super::failure::Failure;
use super::options::{self, CriuArgs, LogArgs, Security, TlsArgs, apply_common, flags, work_path};
use super::signals::Interrupts;
use super::values;

/// Take the pages of one checkpoint that is made elsewhere
///
/// The server takes one connection, from anyone who reaches its address, and ends with it. It stores pages and their
/// maps; the other images stay where the checkpoint is made. Merge the two directories before a restore.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  criuctl page-server --image-path /var/tmp/images --address 192.0.2.7 --port 2727
  criuctl checkpoint pid:4711 --image-path /var/tmp/images --page-server 192.0.2.7:2727")]
pub(super) struct PageServerArgs {
    /// Directory that gets the pages; it is made if it is missing
    #[arg(long, short = 'D', visible_alias = "images-dir", value_name = "DIR", value_parser = values::path, help_heading = "Images")]
    image_path: PathBuf,

    /// Directory for the log [default: that of the images]
    #[arg(long, short = 'W', visible_alias = "work-dir", value_name = "DIR", value_parser = values::path, help_heading = "Images")]
    work_path: Option<PathBuf>,

    /// Images of the previous pre-dump, relative to the images directory, such as ../1
    #[arg(
        long,
        visible_alias = "prev-images-dir",
        value_name = "DIR",
        help_heading = "Images"
    )]
    parent_path: Option<PathBuf>,

    /// Punch pages that arrive out of the previous images
    #[arg(long, help_heading = "Images")]
    auto_dedup: bool,

    /// Numeric address to listen on; there is no default, because whoever reaches it can send pages
    #[arg(long, value_name = "ADDRESS", value_parser = options::address, required_unless_present = "ps_socket", help_heading = "Network")]
    address: Option<IpAddr>,

    /// Port to listen on; 0 for one that the kernel picks
    #[arg(
        long,
        value_name = "PORT",
        required_unless_present = "ps_socket",
        help_heading = "Network"
    )]
    port: Option<u16>,

    /// Inherited descriptor of a connected stream socket to read from instead
    #[arg(long, value_name = "FD", value_parser = values::descriptor, conflicts_with_all = ["address", "port", "tls"], help_heading = "Network")]
    ps_socket: Option<i32>,

    /// Return when it listens; nobody can wait for it then
    #[arg(long, short = 'd', visible_alias = "daemon", help_heading = "Network")]
    detach: bool,

    /// Inherited descriptor that CRIU writes a zero byte to when it listens
    #[arg(long, value_name = "FD", value_parser = values::descriptor, help_heading = "Network")]
    status_fd: Option<i32>,

    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    security: Security,
    #[command(flatten)]
    criu: CriuArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// The server that listens.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Listening<'a> {
    images_dir: &'a Path,
    address: Option<IpAddr>,
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    detached: bool,
}

pub(super) async fn run(context: &Context, server: &PageServerArgs) -> Result<ExitCode, Failure> {
    let criu = context.criu(server.criu.program_arguments())?;
    let images = ImagesDir::create(&server.image_path).map_err(|error| {
        Failure::input(format!(
            "{} cannot be the images directory",
            server.image_path.display()
        ))
        .caused_by(error)
    })?;
    if let Some(parent) = &server.parent_path {
        has_parent(&server.image_path, parent)?;
    }
    match server.detach {
        true => detached(context, server, &criu, &images).await,
        false => attended(context, server, &criu, &images).await,
    }
}

async fn detached(
    context: &Context,
    server: &PageServerArgs,
    criu: &Criu,
    images: &ImagesDir,
) -> Result<ExitCode, Failure> {
    let started = criu.page_server_detached(images, server.options()?);
    let started = Interrupts::new()?
        .guard(
            OperationKind::PageServer,
            &context.output,
            started,
            criu.settled(),
            || TaskState::NotConcerned,
        )
        .await?;
    server.tell(context, images, started.port, None)?;
    Ok(ExitCode::SUCCESS)
}

async fn attended(
    context: &Context,
    server: &PageServerArgs,
    criu: &Criu,
    images: &ImagesDir,
) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::new()?;
    let operation = OperationKind::PageServer;
    let output = &context.output;
    let state = || TaskState::NotConcerned;
    let started = criu.page_server(images, server.options()?);
    let started = interrupts
        .guard(operation, output, started, criu.settled(), state)
        .await?;
    server.tell(context, images, started.port(), Some(started.pid()))?;
    match interrupts
        .guard(operation, output, started.wait(), criu.settled(), state)
        .await
    {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The one document is out already, so this is told as text whatever the format.
        Err(failure) => {
            failure.say(output);
            Ok(ExitCode::from(failure.status() as u8))
        }
    }
}

impl PageServerArgs {
    fn options(&self) -> Result<PageServerOptions, Failure> {
        let mut options = PageServerOptions::new();
        apply_common!(options, self.criu, work_path(self.work_path.as_deref())?);
        flags!(options, self.security, unprivileged => unprivileged);
        options::given!(options, self.log, log_file => log_file);
        flags!(options, self, auto_dedup => auto_dedup);
        options::given!(options, self, parent_path => parent_images);
        if let Some(number) = self.status_fd {
            options = options.status_fd(inherited(number, "--status-fd")?);
        }
        if let Some(tls) = self.tls.to_library() {
            options = options.tls(tls);
        }
        Ok(match (self.ps_socket, self.address, self.port) {
            (Some(number), ..) => {
                options.transport(PageTransport::Connected(inherited(number, "--ps-socket")?))
            }
            (None, Some(address), Some(port)) => {
                options.transport(PageTransport::tcp(address.to_string(), port))
            }
            _ => return Err(Failure::usage("--address and --port are required")),
        })
    }

    fn tell(
        &self,
        context: &Context,
        images: &ImagesDir,
        port: Option<u16>,
        pid: Option<i32>,
    ) -> Result<(), Failure> {
        let listening = Listening {
            images_dir: images.path(),
            address: self.address,
            port,
            pid,
            detached: self.detach,
        };
        context
            .output
            .result("PageServer", &listening, || match (self.address, port) {
                (Some(address), Some(port)) => {
                    format!("listening on {}\n", SocketAddr::new(address, port))
                }
                _ => "reading from the socket that was given\n".into(),
            })
    }
}
