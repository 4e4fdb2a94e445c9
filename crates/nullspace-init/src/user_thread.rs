//! Work as one of the guest's users, on a thread that ends with it: see [`files`](crate::files) for the reason.

use std::path::Path;

use nullspace_guest::message::{Failure, FailureKind};

use crate::files::{become_user, failure};
use crate::process::prepare::accounts;
use crate::users::Account;

/// The account of a user, as the image knows it.
pub(crate) fn account(user: Option<&str>) -> Result<Account, Failure> {
    accounts()?.resolve(user.unwrap_or_default())
}

/// Runs `work` on a thread that has taken the account on, and waits for it.
pub(crate) fn run<T, E>(account: &Account, work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E>
where
    T: Send,
    E: From<Failure> + Send,
{
    let done = std::thread::scope(|scope| {
        let work = || {
            become_user(account).map_err(|error| failure(&error, "The user cannot be taken on", Path::new("/")))?;
            work()
        };
        let thread = std::thread::Builder::new().name("user".into()).spawn_scoped(scope, work);
        thread.map(|thread| thread.join())
    });
    match done {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => {
            let message = "The agent failed while it worked on files.".to_owned();
            Err(Failure { kind: FailureKind::Internal, message }.into())
        }
        Err(error) => {
            let message = format!("The agent can start no thread: {error}.");
            Err(Failure { kind: FailureKind::Limit, message }.into())
        }
    }
}
