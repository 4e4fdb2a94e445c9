//! Answers of an S3 store as errors of this crate.

use reqwest::StatusCode;

use super::credentials::Unusable;
use super::http::{Broken, Refusal, cause, root};
use crate::{Error, ObjectName};

/// Converts an error of the S3 client. `name` is the object that was asked for, if it was one.
pub(super) fn error(error: &object_store::Error, name: Option<&ObjectName>) -> Error {
    if let Some(refusal) = cause::<Refusal>(error) {
        return refused(refusal, name);
    }
    if let Some(Broken(what)) = cause(error) {
        return Error::unavailable(what);
    }
    if let Some(unusable) = cause::<Unusable>(error) {
        return Error::Denied { what: unusable.to_string(), setting: "the credentials file of the S3 store" };
    }
    match error {
        object_store::Error::InvalidPath { .. } => Error::Invalid(
            "the S3 store has keys with empty parts below the prefix: use a prefix that no other program writes to"
                .to_owned(),
        ),
        // A proxy's page instead of the store's answer, and the like.
        error => Error::unavailable(format!("an answer that is not S3's: {}", root(error))),
    }
}

/// Converts a status and S3's error code.
fn refused(refusal: &Refusal, name: Option<&ObjectName>) -> Error {
    let Refusal { status, code } = refusal;
    let what = match code.as_str() {
        "" => format!("HTTP status {status}"),
        code => format!("HTTP status {}, {code}", status.as_u16()),
    };
    let denied = |setting| Error::Denied { what: what.clone(), setting };
    match code.as_str() {
        "NoSuchBucket" | "InvalidBucketName" => return denied("the bucket of the S3 store: it must exist"),
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => {
            return denied("the credentials of the S3 store");
        }
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            return denied("the region and endpoint of the S3 store");
        }
        "RequestTimeTooSkewed" => return denied("the clock of this host"),
        "XMinioStorageFull" | "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded" | "InsufficientStorage" => {
            return Error::Full { what };
        }
        "ConditionalRequestConflict" | "OperationAborted" | "SlowDown" | "RequestTimeout" => {
            return Error::unavailable(what);
        }
        _ => {}
    }
    match (*status, name) {
        (StatusCode::NOT_FOUND, Some(name)) => Error::not_found(name),
        (StatusCode::UNAUTHORIZED, _) => denied("the credentials of the S3 store"),
        (StatusCode::FORBIDDEN, _) => denied("what the credentials of the S3 store may do in bucket and prefix"),
        (StatusCode::INSUFFICIENT_STORAGE, _) => Error::Full { what },
        (StatusCode::NOT_IMPLEMENTED, _) => Error::Invalid(format!("the S3 store lacks an operation ({what})")),
        (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT, _) => {
            Error::unavailable(what)
        }
        (status, _) if status.is_server_error() => Error::unavailable(what),
        (status, _) if status.is_redirection() => denied("the region and endpoint of the S3 store"),
        _ => Error::Invalid(format!("the S3 store rejects the request ({what})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_kind() {
        let name: ObjectName = "a".parse().unwrap();
        let of = |status: u16, code: &str| {
            refused(&Refusal { status: StatusCode::from_u16(status).unwrap(), code: code.to_owned() }, Some(&name))
        };
        for (status, code) in
            [(500, ""), (503, "SlowDown"), (503, ""), (429, ""), (408, ""), (409, ""), (500, "InternalError")]
        {
            let error = of(status, code);
            assert!(matches!(error, Error::Unavailable { .. }) && error.is_retryable(), "{status} {code}: {error:?}");
        }
        for (status, code, setting) in [
            (404, "NoSuchBucket", "bucket"),
            (403, "InvalidAccessKeyId", "credentials"),
            (403, "SignatureDoesNotMatch", "credentials"),
            (401, "", "credentials"),
            (403, "AccessDenied", "may do"),
            (403, "RequestTimeTooSkewed", "clock"),
            (301, "PermanentRedirect", "region"),
            (307, "", "region"),
        ] {
            let error = of(status, code);
            assert!(
                matches!(&error, Error::Denied { setting: says, .. } if says.contains(setting)),
                "{status} {code}: {error:?}"
            );
            assert!(!error.is_retryable());
        }
        for (status, code) in [(507, ""), (507, "XMinioStorageFull"), (403, "QuotaExceeded")] {
            assert!(matches!(of(status, code), Error::Full { .. }), "{status} {code}");
        }
        assert!(matches!(of(404, "NoSuchKey"), Error::NotFound { .. }));
        assert!(matches!(of(404, ""), Error::NotFound { .. }));
        assert!(matches!(of(400, "EntityTooLarge"), Error::Invalid(_)));
    }
}
