//! The only file that may use `unsafe`: starting a process with an exact descriptor table, and registering descriptors
//! with tokio. Everything else goes through safe wrappers (rustix, nix).
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, PidfdFlags, WaitIdOptions, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What a child process gets. Its descriptor table is exactly `stdio` at 0, 1, 2 and `inherited` from 3 upwards.
pub(crate) struct Spawn<'a> {
    pub(crate) program: CString,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// The first becomes descriptor 3, the next 4, and so on.
    pub(crate) inherited: Vec<BorrowedFd<'a>>,
    /// Start a session of its own, so that a terminal's signals do not reach the child.
    pub(crate) new_session: bool,
}

/// The number that the first of [`Spawn::inherited`] has in the child.
pub(crate) const FIRST_INHERITED: i32 = 3;

impl Spawn<'_> {
    /// Starts the child with no signal blocked or ignored: CRIU fails in many places when it inherits an ignored SIGCHLD.
    ///
    /// The child is the caller's to reap. A program that cannot be executed is an error here; nothing is left to reap then.
    pub(crate) fn start(self) -> io::Result<Pid> {
        self.prepared(|call| {
            let mut pid = 0;
            // SAFETY: `call` holds valid pointers, see `prepared`.
            check(unsafe { call.spawn(&mut pid) })?;
            Ok(pid)
        })
    }

    /// As [`Spawn::start`], but the process is no descendant of this one: an intermediate child starts it and ends, so that
    /// init, or the nearest subreaper above, becomes its parent and reaps it.
    pub(crate) fn start_outside(self) -> io::Result<Pid> {
        let (mut report, report_end) = io::pipe()?;
        self.prepared(|call| {
            // SAFETY: the child calls posix_spawn, write and _exit and nothing else. None of them takes a lock of ours or
            // allocates: glibc's posix_spawn needs a stack that it maps itself.
            match unsafe { libc::fork() } {
                -1 => Err(io::Error::last_os_error()),
                0 => {
                    let mut pid = 0;
                    // SAFETY: as above; the array outlives the write.
                    unsafe {
                        let code = call.spawn(&mut pid);
                        let message = [code, pid];
                        libc::write(
                            report_end.as_raw_fd(),
                            message.as_ptr().cast(),
                            size_of_val(&message),
                        );
                        libc::_exit(0)
                    }
                }
                child => {
                    drop(report_end);
                    let mut message = [0; 8];
                    let told = io::Read::read_exact(&mut report, &mut message);
                    if let Some(child) = Pid::from_raw(child) {
                        // Somebody who reaps every child of this process may have been first.
                        let _ = rustix::process::waitpid(
                            Some(child),
                            rustix::process::WaitOptions::empty(),
                        );
                    }
                    told?;
                    let [a, b, c, d, e, f, g, h] = message;
                    check(i32::from_ne_bytes([a, b, c, d]))?;
                    Ok(i32::from_ne_bytes([e, f, g, h]))
                }
            }
        })
    }

    /// Makes everything that posix_spawn needs and hands it to `start`, which tells the pid.
    fn prepared(self, start: impl FnOnce(&Call<'_>) -> io::Result<libc::pid_t>) -> io::Result<Pid> {
        // The sources are moved above every target first, so that no dup2 in the child can overwrite one that is still needed.
        let last = FIRST_INHERITED + self.inherited.len() as i32;
        let mut sources: Vec<(OwnedFd, i32)> = Vec::with_capacity(3 + self.inherited.len());
        for (target, fd) in self.stdio.iter().chain(&self.inherited).enumerate() {
            sources.push((fcntl_dupfd_cloexec(fd, last)?, target as i32));
        }
        let mut actions = FileActions::new()?;
        for (source, target) in &sources {
            actions.duplicate(source.as_fd(), *target)?;
        }
        actions.close_from(last)?;
        let attributes = Attributes::new(self.new_session)?;

        let pointers = |strings: &[CString]| -> Vec<*mut libc::c_char> {
            strings
                .iter()
                .map(|string| string.as_ptr().cast_mut())
                .chain([ptr::null_mut()])
                .collect()
        };
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let pid = start(&Call {
            program: &self.program,
            actions: &actions,
            attributes: &attributes,
            arguments: &arguments,
            environment: &environment,
        })?;
        Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn returned no pid"))
    }
}

/// The arguments of posix_spawn. The two vectors are null-terminated and point to strings that outlive this.
struct Call<'a> {
    program: &'a CString,
    actions: &'a FileActions,
    attributes: &'a Attributes,
    arguments: &'a [*mut libc::c_char],
    environment: &'a [*mut libc::c_char],
}

impl Call<'_> {
    /// # Safety
    /// What the type says of its vectors must hold.
    unsafe fn spawn(&self, pid: &mut libc::pid_t) -> libc::c_int {
        // SAFETY: every pointer is valid for the call, and posix_spawn writes through none of them but `pid`.
        unsafe {
            libc::posix_spawn(
                pid,
                self.program.as_ptr(),
                &self.actions.0,
                &self.attributes.0,
                self.arguments.as_ptr(),
                self.environment.as_ptr(),
            )
        }
    }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the pointer is valid for writing; on success the value is initialised.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn duplicate(&mut self, source: BorrowedFd<'_>, target: i32) -> io::Result<()> {
        // SAFETY: `self.0` is initialised; the numbers are only recorded here.
        check(unsafe {
            libc::posix_spawn_file_actions_adddup2(&mut self.0, source.as_raw_fd(), target)
        })
    }

    fn close_from(&mut self, first: i32) -> io::Result<()> {
        // SAFETY: `self.0` is initialised; the number is only recorded here.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&mut self.0, first) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(new_session: bool) -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the pointer is valid for writing; on success the value is initialised.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        let mut attributes = Self(unsafe { attributes.assume_init() });

        let mut flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        if new_session {
            flags |= i32::from(libc::POSIX_SPAWN_SETSID);
        }
        let mut none = MaybeUninit::uninit();
        let mut all = MaybeUninit::uninit();
        // SAFETY: both sets are initialised by the calls before they are read; `attributes` is initialised.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(
                &mut attributes.0,
                none.as_ptr(),
            ))?;
            check(libc::posix_spawnattr_setsigdefault(
                &mut attributes.0,
                all.as_ptr(),
            ))?;
            check(libc::posix_spawnattr_setflags(
                &mut attributes.0,
                flags as libc::c_short,
            ))?;
        }
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

fn check(code: libc::c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Which of the two processes a fork has left us in.
pub(crate) enum Forked {
    Child,
    Parent(Pid),
}

/// Forks this process, which must have no thread but this one: only then does the child find every lock free and may go on
/// as any program does.
pub(crate) fn fork_alone() -> io::Result<Forked> {
    demand_alone()?;
    // SAFETY: there is no other thread, so the child has all that the parent has.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        child => Pid::from_raw(child)
            .map(Forked::Parent)
            .ok_or_else(|| io::Error::other("fork returned no pid")),
    }
}

fn demand_alone() -> io::Result<()> {
    // Does nothing, unless somebody shares our memory: then the kernel refuses it. Listing /proc costs fifty times as much.
    // SAFETY: no pointer is passed, and nothing is changed either way.
    if unsafe { libc::unshare(libc::CLONE_VM) } == 0 {
        return Ok(());
    }
    // It may be a filter of system calls that has refused.
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!(
            "this process has {threads} threads and must have one"
        ))),
    }
}

/// As much as a program's own stack may have; only what is used of it exists.
const STACK: usize = 8 << 20;

/// Runs `run` in a process that is no descendant of this one, and ends that process with the status that `run` returns. This
/// process must have no thread but this one. What `run` owns is dropped here, when the other process has it.
///
/// An intermediate child, in this process's own memory and with this process stopped, forks the other and ends: so the page
/// tables are copied once and not twice.
pub(crate) fn run_outside<F: FnOnce() -> u8>(run: F) -> io::Result<()> {
    struct Call<F> {
        run: Option<F>,
        error: libc::c_int,
    }
    extern "C" fn intermediate<F: FnOnce() -> u8>(call: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it is the `Call` of the frame that started us, which is stopped until we have ended.
        let call = unsafe { &mut *call.cast::<Call<F>>() };
        // SAFETY: there is no other thread, and whoever shares our memory is stopped. The child has a copy of everything, the
        // stack that it runs on included.
        match unsafe { libc::fork() } {
            -1 => {
                call.error = io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EAGAIN)
            }
            0 => exit_now(call.run.take().map_or(1, |run| run().into())),
            _ => {}
        }
        0
    }
    demand_alone()?;
    let stack = Stack::new(STACK)?;
    let mut call = Call {
        run: Some(run),
        error: 0,
    };
    // SAFETY: the stack is mapped, ends where the pointer is, and is unmapped only after CLONE_VFORK has let us go on, when the
    // intermediate child has ended. `call` outlives it for the same reason.
    let child = unsafe {
        libc::clone(
            intermediate::<F>,
            stack.top(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            (&raw mut call).cast(),
        )
    };
    let Some(child) = Pid::from_raw(child).filter(|_| child > 0) else {
        return Err(io::Error::last_os_error());
    };
    // Somebody may have SIGCHLD ignored: then it is gone already.
    let _ = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    check(call.error)
}

/// Memory for the stack of another process, with a page at its end that nobody may touch.
struct Stack {
    start: *mut libc::c_void,
    size: usize,
}

impl Stack {
    fn new(size: usize) -> io::Result<Self> {
        let guard = rustix::param::page_size();
        // SAFETY: a new mapping, anywhere.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size + guard,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self {
            start,
            size: size + guard,
        };
        // SAFETY: within the mapping that was made above.
        let usable = unsafe {
            libc::mprotect(
                start.byte_add(guard),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
            )
        };
        match usable {
            0 => Ok(stack),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where a stack begins that grows downwards.
    fn top(&self) -> *mut libc::c_void {
        // SAFETY: one behind the last byte of the mapping.
        unsafe { self.start.byte_add(self.size) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing runs on it any more.
        unsafe { libc::munmap(self.start, self.size) };
    }
}

/// Forks a process that does nothing but wait until the other end of `life`, a pipe, is closed everywhere. It has no other
/// descriptor, takes no signal that can be blocked, and is the caller's to reap. Other threads may run.
pub(crate) fn fork_waiting(life: BorrowedFd<'_>) -> io::Result<Pid> {
    // SAFETY: the child makes system calls and nothing else: none of them takes a lock or allocates.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: every pointer is to this stack or to a constant; nobody else uses the descriptors of this process.
        0 => unsafe {
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut());
            libc::setsid();
            libc::prctl(libc::PR_SET_NAME, c"criuctl-seat".as_ptr());
            if libc::dup2(life.as_raw_fd(), 0) == -1 || libc::close_range(1, u32::MAX, 0) == -1 {
                libc::_exit(1);
            }
            let mut byte = 0_u8;
            while libc::read(0, (&raw mut byte).cast(), 1) > 0 {}
            libc::_exit(0)
        },
        child => Pid::from_raw(child).ok_or_else(|| io::Error::other("fork returned no pid")),
    }
}

/// Ends this process at once: nothing that the parent of a fork has left to be done is done twice.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit takes no pointer and does not return.
    unsafe { libc::_exit(status) }
}

/// Gives SIGPIPE its default again, which is to end the process.
pub(crate) fn default_sigpipe() {
    // SAFETY: no function is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Takes over an inherited descriptor by its number, close-on-exec from now on.
///
/// Whoever calls this says that nothing else in this process uses the number.
pub(crate) fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    if number < FIRST_INHERITED {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: checked to be open by the call below, before anything relies on it; the caller has it to itself.
    let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) };
    if let Err(error) = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC) {
        // Not open: there is nothing to close.
        std::mem::forget(fd);
        return Err(error.into());
    }
    Ok(fd)
}

/// Makes `number` another descriptor of what `fd` is, inherited by programs that are executed. What it was is closed.
pub(crate) fn inherit_as(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: the caller gives up what `number` was; descriptors are numbers to the kernel.
    match unsafe { libc::dup3(fd.as_raw_fd(), number, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Closes every descriptor from 3 on but those of `kept`. Values that own another one must not be used or dropped any more:
/// this is for a process that was forked to do one thing.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept
        .iter()
        .map(|fd| fd.as_raw_fd().unsigned_abs())
        .collect();
    kept.sort_unstable();
    let mut first = FIRST_INHERITED.unsigned_abs();
    for number in kept.into_iter().chain([u32::MAX]) {
        if number > first {
            // SAFETY: the caller uses none of these any more.
            if unsafe { libc::close_range(first, number - 1, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

/// A descriptor that a tokio task can wait on, for this and nothing else: whoever waits for one kind of readiness is not
/// woken by the other. Must be made within a runtime.
pub(crate) fn registered(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open until the registration, which holds it, is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// A pidfd that a tokio task can wait on. Must be made within a runtime.
pub(crate) struct ExitWatch(AsyncFd<OwnedFd>);

impl ExitWatch {
    pub(crate) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        registered(pidfd, Interest::READABLE).map(Self)
    }

    /// Completes when the process has ended (it may still be a zombie). Cancel safe.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Opens a pidfd of a process that cannot have been reaped yet, or that somebody else may reap at any time.
pub(crate) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Reaps the process behind `pidfd` if it has ended and is our child. `Ok(None)`: it has not ended.
pub(crate) fn reap_pidfd(
    pidfd: BorrowedFd<'_>,
) -> io::Result<Option<rustix::process::WaitIdStatus>> {
    loop {
        match rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
