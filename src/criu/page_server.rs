//! PAGE_SERVER_CHLD with WAIT_PID, and PAGE_SERVER.
//!
//! ```text
//! client                                  worker                       page server (child of the worker)
//!   | PAGE_SERVER_CHLD, keep_open ----------->| forks ------------------>| listens
//!   |<- PAGE_SERVER{port, pid} ---------------|                          |<== one connection, pages ==
//!   | WAIT_PID{pid} ------------------------->| waits ...                | exits when it closes
//!   |<- WAIT_PID{status} ---------------------|
//! ```

use std::os::unix::process::ExitStatusExt;

use super::care::{Care, PageServerCare};
use super::running::{Held, Trouble, conclude};
use super::tasks::Task;
use super::{Criu, ImagesDir, Plan};
use crate::error::{Error, OperationKind, Result};
use crate::options::PageServerOptions;
use crate::rpc::session::{Session, Violation};
use crate::rpc::swrk::{Exit, FIRST_REQUEST_FD};
use crate::rpc::wire::{CriuPageServerInfo, CriuReq, CriuReqType};

/// A page server that listens, or has its connection already. It takes the pages of one dump or pre-dump.
///
/// Dropped, it is killed.
#[must_use = "a page server that is dropped is killed"]
pub struct PageServer {
    held: Held,
    port: Option<u16>,
    pid: i32,
}

/// A page server that belongs to nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DetachedPageServer {
    /// The port that it listens on.
    pub port: Option<u16>,
}

impl Criu {
    /// Starts a page server that stores pages in `images`; it listens when this returns.
    ///
    /// It takes its one connection **from anyone** who reaches the address, so give one that only the sender reaches,
    /// or a socket that is connected already.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    ///
    /// # Cancel safety
    /// Dropping the future ends the server.
    pub async fn page_server(
        &self,
        images: &ImagesDir,
        options: PageServerOptions,
    ) -> Result<PageServer> {
        let mut plan = self.page_server_plan(images, options, |_| CriuReqType::PageServerChld)?;
        plan.keep_open = true;
        plan.care = Box::new(|_| Care::PageServer(PageServerCare::None));
        let mut held = self.begin(plan).await?;
        let info = started(&mut held).await?;
        let Some(pid) = info.pid.filter(|pid| *pid > 0) else {
            return Err(broken(held, "ps.pid").await);
        };
        if let Some(running) = held.get_mut() {
            running.care = Care::PageServer(match running.same_pids() {
                // Its parent, the worker, has not reaped it: the number is its own.
                true => Task::open(pid).map_or(PageServerCare::None, PageServerCare::Child),
                false => PageServerCare::Elsewhere(pid),
            });
            running.answer = None;
        }
        Ok(PageServer {
            held,
            port: port(&info),
            pid,
        })
    }

    /// Starts a page server that goes on without us, and that nobody can wait for: CRIU tells no pid of it.
    ///
    /// # Errors
    /// See [`ErrorKind`](crate::ErrorKind).
    pub async fn page_server_detached(
        &self,
        images: &ImagesDir,
        options: PageServerOptions,
    ) -> Result<DetachedPageServer> {
        let plan = self.page_server_plan(images, options, |_| CriuReqType::PageServer)?;
        let mut held = self.begin(plan).await?;
        let info = started(&mut held).await?;
        conclude(&mut held).await?;
        Ok(DetachedPageServer { port: port(&info) })
    }

    fn page_server_plan(
        &self,
        images: &ImagesDir,
        options: PageServerOptions,
        request: fn(&crate::Version) -> CriuReqType,
    ) -> Result<Plan> {
        let prepared = options
            .prepare(FIRST_REQUEST_FD)
            .map_err(|error| Error::before(OperationKind::PageServer, error.into()))?;
        let mut plan = Plan::new(OperationKind::PageServer, request, prepared);
        plan.images = Some(images.clone());
        plan.log = Some("page-server");
        Ok(plan)
    }
}

impl PageServer {
    /// The port that it listens on; `None` when it was given a connected socket.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Its pid, in CRIU's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until it has stored the pages of its one connection and ended.
    ///
    /// # Errors
    /// When it ended otherwise than with exit status 0, or CRIU went away.
    ///
    /// # Cancel safety
    /// Dropping the future drops the server, which is killed.
    pub async fn wait(mut self) -> Result<()> {
        let request = CriuReq {
            r#type: CriuReqType::WaitPid.into(),
            pid: u32::try_from(self.pid).ok(),
            ..Default::default()
        };
        let mut status = None;
        if let Some(running) = self.held.get_mut() {
            running.session = Session::new(CriuReqType::WaitPid);
            match running.send(&prost::Message::encode_to_vec(&request)).await {
                Ok(()) => match running.sole_answer().await {
                    Ok(answer) => {
                        status = answer.status;
                        running.care = Care::Nothing;
                        running.answer = Some(answer);
                    }
                    Err(trouble) => {
                        running.trouble.get_or_insert(trouble);
                    }
                },
                Err(trouble) => {
                    running.trouble.get_or_insert(trouble);
                }
            }
        }
        let mut ended = conclude(&mut self.held).await?;
        let Some(status) = status.map(std::process::ExitStatus::from_raw) else {
            return Err(ended.missing("status"));
        };
        if status.success() {
            return Ok(());
        }
        ended.exit = match (status.code(), status.signal()) {
            (Some(code), _) => Some(Exit::Status(code)),
            (None, Some(signal)) => Some(Exit::Signal(signal)),
            (None, None) => Some(Exit::Unknown),
        };
        Err(ended.refused())
    }
}

impl std::fmt::Debug for PageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageServer")
            .field("port", &self.port)
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// Waits for the answer that says that the server listens.
async fn started(held: &mut Held) -> Result<CriuPageServerInfo> {
    if let Some(running) = held.get_mut() {
        match running.sole_answer().await {
            Ok(answer) => {
                let info = answer
                    .success
                    .then(|| answer.ps.clone().unwrap_or_default());
                running.answer = Some(answer);
                if let Some(info) = info {
                    return Ok(info);
                }
            }
            Err(trouble) => {
                running.trouble.get_or_insert(trouble);
            }
        }
    }
    Err(match conclude(held).await {
        Err(error) => error,
        Ok(ended) => ended.into_error(Trouble::Lost),
    })
}

async fn broken(mut held: Held, field: &'static str) -> Error {
    if let Some(running) = held.get_mut() {
        running.trouble = Some(Trouble::Protocol(Violation::MissingField {
            request: "PAGE_SERVER_CHLD",
            field,
        }));
    }
    match conclude(&mut held).await {
        Err(error) => error,
        Ok(ended) => ended.into_error(Trouble::Lost),
    }
}

fn port(info: &CriuPageServerInfo) -> Option<u16> {
    info.port
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0)
}
