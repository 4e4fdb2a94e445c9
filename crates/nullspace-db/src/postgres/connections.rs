//! Connections to the server: their settings, limits and timeouts.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use crate::{DbError, Result};

/// Connections that write. In most transactions they take turns, so few are enough.
const WRITERS: u32 = 4;
const READERS: u32 = 8;
/// Longest wait of a caller for a connection, also while the server is away.
const WAIT: Duration = Duration::from_secs(10);
/// An idle connection is closed after this time.
const IDLE: Duration = Duration::from_secs(300);
/// Prepared statements that a connection keeps. There are some two hundred.
const STATEMENTS: usize = 256;

/// Settings of each session. A server, a database or a role may have others as its defaults; these count.
const SESSION: [(&str, &str); 9] = [
    ("application_name", "nullspace"),
    // A commit is on the server's disk when it returns.
    ("synchronous_commit", "on"),
    ("default_transaction_read_only", "off"),
    // A write waits so long for its turn.
    ("lock_timeout", "30s"),
    ("statement_timeout", "60s"),
    // A service whose host is cut off gives its turn up.
    ("idle_in_transaction_session_timeout", "30s"),
    ("tcp_keepalives_idle", "15"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// Parameters that an address may have. sqlx logs the value of one that it does not know.
const PARAMETERS: [&str; 6] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "options[search_path]", "options%5Bsearch_path%5D"];

/// Reads the address of a database.
///
/// # Errors
/// [`DbError::Conflict`] when it is none. The message never has a part of it: it may have a password.
pub(super) fn options(url: &str) -> Result<PgConnectOptions> {
    let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    let refused = || DbError::conflict("the database's address is not of the form postgres://user@host:5432/name");
    if !is_postgres {
        return Err(refused());
    }
    let parameters = url.split_once('?').map(|(_, parameters)| parameters);
    let known = |parameter: &str| parameter.split_once('=').is_some_and(|(name, _)| PARAMETERS.contains(&name));
    if !parameters.is_none_or(|parameters| parameters.split('&').all(known)) {
        return Err(DbError::conflict(
            "the database's address has a parameter that is none of sslmode, sslrootcert, sslcert, sslkey and options[search_path]",
        ));
    }
    // The reader's own message may quote a part of the address.
    let options = PgConnectOptions::from_str(url).map_err(|_| refused())?;
    Ok(options.options(SESSION).statement_cache_capacity(STATEMENTS))
}

/// The pool of the connections that write.
pub(super) fn writers() -> PgPoolOptions {
    pool(WRITERS)
}

/// The pool of the connections that read.
pub(super) fn readers() -> PgPoolOptions {
    pool(READERS)
}

/// A pool of one connection, for a look.
pub(super) fn one() -> PgPoolOptions {
    pool(1)
}

fn pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new().max_connections(connections).acquire_timeout(WAIT).idle_timeout(IDLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_refused_is_not_in_the_error() {
        for url in [
            "",
            "mysql://u:secret@h/d",
            "postgres://u:secret@h:port/d",
            "postgres://u:secret@h/d?sslmode=secret",
            "postgres://u@h/d?pasword=secret",
        ] {
            let error = options(url).unwrap_err();
            assert!(matches!(error, DbError::Conflict { .. }), "{error:?}");
            assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
        }
        options("postgres://u:secret@h:5432/d?sslmode=require&options[search_path]=own").unwrap();
    }
}
