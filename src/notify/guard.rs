//! Asking hooks so that whatever becomes of them is a value: exactly one reply follows.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::{HookError, Hooks, Notify, Reply};
use crate::error::HookFailure;

/// Asks `hooks`, for at most `limit`. Dropped, the hook's future is dropped too.
pub(crate) async fn ask(
    hooks: &mut impl Hooks,
    notify: Notify,
    limit: Option<Duration>,
) -> Result<Reply, (HookFailure, Option<HookError>)> {
    // Within the guard too: a hook may panic where it makes its future.
    let hook = guarded(async { hooks.notify(notify).await });
    let replied = match limit {
        Some(limit) => tokio::time::timeout(limit, hook)
            .await
            .map_err(|_| (HookFailure::TimedOut(limit), None))?,
        None => hook.await,
    };
    match replied {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(error)) => Err((HookFailure::Failed, Some(error))),
        Err(panic) => Err((HookFailure::Panicked(panic), None)),
    }
}

/// Runs a hook so that its panic becomes a value: the panic's message.
async fn guarded<T>(hook: impl Future<Output = T>) -> Result<T, String> {
    let mut hook = pin!(hook);
    std::future::poll_fn(|context| {
        match std::panic::catch_unwind(AssertUnwindSafe(|| hook.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(done)) => Poll::Ready(Ok(done)),
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(ToString::to_string)
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                Poll::Ready(Err(message.unwrap_or_else(|| "(no message)".into())))
            }
        }
    })
    .await
}
