//! The hooks of the command line: programs, and the socket that gets a restored terminal.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use criu_client::OperationKind;
use criu_client::notify::{Event, HookError, Hooks, Notify, Program, Reply, Script};

use super::failure::Failure;
use super::values::Hook;

/// A program per callback, and where terminals go.
#[derive(Debug)]
pub(super) struct CliHooks {
    programs: Vec<(Script, Program)>,
    console: Console,
}

/// Where the other end of a restored terminal goes.
#[derive(Debug)]
enum Console {
    /// There is nobody to take it.
    Nowhere,
    /// To the receiver behind this socket.
    Socket(UnixStream),
    /// Somebody else hands it out.
    Elsewhere,
}

impl CliHooks {
    /// The hooks of `operation`. A hook at a callback that this operation does not have would never be run.
    pub(super) fn new(hooks: &[Hook], operation: OperationKind) -> Result<Self, Failure> {
        if let Some(hook) = hooks.iter().find(|hook| !comes_in(&hook.script, operation)) {
            let known: Vec<String> = Script::known()
                .filter(|script| comes_in(script, operation))
                .map(|script| script.to_string())
                .collect();
            return Err(Failure::usage(format!(
                "--hook: there is no {} callback in a {operation}",
                hook.script
            ))
            .hint(format!("it has {}", known.join(", "))));
        }
        one_for_each(hooks)?;
        Ok(Self {
            programs: hooks
                .iter()
                .map(|hook| (hook.script.clone(), Program::new(&hook.program)))
                .collect(),
            console: Console::Nowhere,
        })
    }

    /// Connects to the socket that gets the other end of a restored terminal.
    pub(super) fn with_console(mut self, socket: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = socket {
            let connected =
                UnixStream::connect(path).map_err(|error| nobody_listens(path, error))?;
            self.console = Console::Socket(connected);
        }
        Ok(self)
    }

    /// What can be told of that socket without connecting.
    pub(super) fn check_console(socket: Option<&Path>) -> Result<(), Failure> {
        let Some(path) = socket else {
            return Ok(());
        };
        let found = std::fs::metadata(path).map_err(|error| nobody_listens(path, error))?;
        match found.file_type().is_socket() {
            true => Ok(()),
            false => Err(nobody_listens(path, rustix::io::Errno::CONNREFUSED.into())),
        }
    }

    /// Somebody else hands terminals out.
    pub(super) fn with_console_elsewhere(mut self) -> Self {
        self.console = Console::Elsewhere;
        self
    }

    fn hand_out(&self, master: &OwnedFd) -> Result<Reply, HookError> {
        let console = match &self.console {
            Console::Elsewhere => return Ok(Reply::Accept),
            Console::Socket(console) => console,
            Console::Nowhere => {
                return Ok(Reply::Refuse(
                    "the images have a terminal whose other end was outside: give --console-socket"
                        .into(),
                ));
            }
        };
        let fds = [master.as_fd()];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err("the terminal's descriptor does not fit into a message".into());
        }
        // The name under which runc sends such a descriptor.
        let name = IoSlice::new(b"orphan-pts-master");
        sendmsg(console, &[name], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(Reply::Accept)
    }
}

impl Hooks for CliHooks {
    async fn notify(&mut self, notify: Notify) -> Result<Reply, HookError> {
        if let Event::OrphanPtsMaster { master } = &notify.event {
            let reply = self.hand_out(master)?;
            if reply != Reply::Accept {
                return Ok(reply);
            }
        }
        let script = notify.script();
        match self.programs.iter_mut().find(|(taken, _)| *taken == script) {
            Some((_, program)) => program.notify(notify).await,
            None => Ok(Reply::Accept),
        }
    }
}

fn nobody_listens(path: &Path, error: std::io::Error) -> Failure {
    let path = path.display();
    Failure::input(format!("nobody listens on the console socket {path}")).caused_by(error)
}

/// Refuses a second program for a callback: only one of them would be run.
pub(super) fn one_for_each(hooks: &[Hook]) -> Result<(), Failure> {
    for (index, hook) in hooks.iter().enumerate() {
        let earlier = &hooks[..index];
        if earlier.iter().any(|other| other.script == hook.script) {
            return Err(
                Failure::usage(format!("--hook: {} has a program already", hook.script))
                    .hint("name one program that does all of it"),
            );
        }
    }
    Ok(())
}

/// Whether `operation` has this callback.
fn comes_in(script: &Script, operation: OperationKind) -> bool {
    match script {
        Script::PreStream | Script::NetworkUnlock => true,
        Script::PreDump
        | Script::NetworkLock
        | Script::QueryExternalFiles
        | Script::PostDump
        | Script::StatusReady => operation == OperationKind::Dump,
        Script::PreRestore
        | Script::SetupNamespaces
        | Script::PostSetupNamespaces
        | Script::OrphanPtsMaster
        | Script::PostRestore
        | Script::PreResume
        | Script::PostResume => operation == OperationKind::Restore,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use criu_client::notify::Script::{PostDump, PostRestore};
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    fn hook(script: Script) -> Hook {
        Hook {
            script,
            program: "/bin/true".into(),
        }
    }

    #[test]
    fn a_hook_that_would_never_run_is_refused() {
        assert!(CliHooks::new(&[hook(PostDump)], OperationKind::Dump).is_ok());
        let error = CliHooks::new(&[hook(PostRestore)], OperationKind::Dump).unwrap_err();
        assert!(format!("{error:?}").contains("post-dump"), "{error:?}");
        assert!(CliHooks::new(&[hook(PostDump)], OperationKind::Restore).is_err());
        assert!(CliHooks::new(&[hook(PostDump), hook(PostDump)], OperationKind::Dump).is_err());
    }

    #[test]
    fn every_callback_comes_in_some_operation() {
        for script in Script::known() {
            let operations = [OperationKind::Dump, OperationKind::Restore];
            assert!(
                operations
                    .iter()
                    .any(|operation| comes_in(&script, *operation)),
                "{script}"
            );
        }
    }

    #[test]
    fn the_console_socket_gets_the_terminal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("console");
        let nobody = CliHooks::new(&[], OperationKind::Restore)
            .unwrap()
            .with_console(Some(&path));
        assert!(nobody.is_err());

        let listener = UnixListener::bind(&path).unwrap();
        let hooks = CliHooks::new(&[], OperationKind::Restore)
            .unwrap()
            .with_console(Some(&path))
            .unwrap();
        let (mut receiver, _) = listener.accept().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(hooks.hand_out(&reader.into()).unwrap(), Reply::Accept);
        let mut byte = [0];
        receiver.read_exact(&mut byte).unwrap();
        drop(writer);

        let without = CliHooks::new(&[], OperationKind::Restore).unwrap();
        let terminal = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            without.hand_out(&terminal.into()),
            Ok(Reply::Refuse(_))
        ));
    }
}
