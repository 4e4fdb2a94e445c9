//! The file in a form (`multipart/form-data`), streamed. The part before it has a size limit, and the part after it is not
//! read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::http::{HeaderMap, StatusCode, header};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use crate::error::Refusal;

/// A body, or a file in it. Its errors have texts for the caller. Nothing follows a refusal.
pub(crate) type Content = BoxStream<'static, Result<Bytes, Refusal>>;

/// Longest boundary, bytes (RFC 2046).
const MAX_BOUNDARY: usize = 70;
/// Most bytes of a form before its file's content: other fields, and all heads. A head ends only at an empty line, so a
/// parser without a limit would keep any amount.
const MAX_BEFORE: usize = 64 << 10;
/// Most fields before the file.
const MAX_FIELDS: usize = 32;

/// The boundary of a form; `None` when the body is not a form.
pub(crate) fn boundary(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else { return Ok(None) };
    if !kind.trim_start().to_ascii_lowercase().starts_with("multipart/") {
        return Ok(None);
    }
    match multer::parse_boundary(kind) {
        Ok(boundary) if boundary.len() <= MAX_BOUNDARY => Ok(Some(boundary)),
        _ => Err(Refusal::invalid("The form is wrong: `Content-Type` has no boundary.")),
    }
}

/// A form whose fields are taken one by one, in their order. A field's content is streamed; what is left of it when the next
/// one is asked for is read and dropped.
pub(crate) struct Fields {
    form: multer::Multipart<'static>,
    before: Arc<AtomicUsize>,
    current: Option<multer::Field<'static>>,
}

impl Fields {
    pub(crate) fn new(content: Content, boundary: String) -> Self {
        let before = Arc::new(AtomicUsize::new(0));
        let feed = Feed { content, rest: Bytes::new(), before: Arc::clone(&before), given: false };
        Self { form: multer::Multipart::new(feed, boundary), before, current: None }
    }

    /// Goes to the next field, and returns its name, empty when it has none. `None`: the form is over.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Refusal> {
        while self.piece().await?.is_some() {}
        self.current = None;
        self.before.store(0, Ordering::Relaxed);
        self.current = self.form.next_field().await.map_err(wrong)?;
        self.before.store(FOUND, Ordering::Relaxed);
        Ok(self.current.as_ref().map(|field| field.name().unwrap_or_default().to_owned()))
    }

    /// The next bytes of the field; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Refusal> {
        match &mut self.current {
            Some(field) => field.chunk().await.map_err(wrong),
            None => Ok(None),
        }
    }
}

/// The content of the form's field `name`.
pub(crate) async fn file(content: Content, boundary: String, name: &str) -> Result<Content, Refusal> {
    let before = Arc::new(AtomicUsize::new(0));
    let mut form = multer::Multipart::new(
        Feed { content, rest: Bytes::new(), before: Arc::clone(&before), given: false },
        boundary,
    );
    let mut fields = 0;
    let field = loop {
        match form.next_field().await.map_err(wrong)? {
            Some(field) if field.name() == Some(name) => break field,
            Some(_) if fields == MAX_FIELDS => {
                let message = format!("The form is wrong: more than {MAX_FIELDS} fields stand before `{name}`.");
                return Err(Refusal::invalid(message));
            }
            Some(_) => fields += 1,
            None => return Err(Refusal::invalid(format!("The form has no field `{name}`."))),
        }
    };
    before.store(FOUND, Ordering::Relaxed);
    Ok(field.map(|piece| piece.map_err(wrong)).boxed())
}

/// The count after the file was found, when bytes are no longer counted.
const FOUND: usize = usize::MAX;

/// Largest piece for the parser before the file is found, bytes. A connection's pieces may have a form's fields and most of
/// its file at once.
const SLICE: usize = 4 << 10;

/// Passes the body to the parser in single pieces, because the parser reads all that is ready before it parses.
struct Feed {
    content: Content,
    /// The rest of a piece that was sliced.
    rest: Bytes,
    /// Bytes given so far, or [`FOUND`].
    before: Arc<AtomicUsize>,
    given: bool,
}

impl Stream for Feed {
    type Item = Result<Bytes, Refusal>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.given) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = self.before.load(Ordering::Relaxed);
        if before != FOUND && before > MAX_BEFORE {
            let message = format!("The form is wrong: its file must begin within the first {MAX_BEFORE} bytes.");
            return Poll::Ready(Some(Err(Refusal::invalid(message))));
        }
        let mut piece = std::mem::take(&mut self.rest);
        if piece.is_empty() {
            piece = match std::task::ready!(self.content.poll_next_unpin(context)) {
                Some(Ok(piece)) => piece,
                end => return Poll::Ready(end),
            };
        }
        if before != FOUND {
            if piece.len() > SLICE {
                self.rest = piece.split_off(SLICE);
            }
            self.before.store(before.saturating_add(piece.len()), Ordering::Relaxed);
        }
        self.given = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

/// A fault of the form, or of the body that it came in.
fn wrong(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<Refusal>() {
            Ok(error) => *error,
            Err(error) => Refusal::invalid("The body ended early.").with_source(error),
        },
        error => Refusal::new(
            StatusCode::BAD_REQUEST,
            nullspace_api::ErrorResponseCode::InvalidRequest,
            format!("The form is wrong: {error}."),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures::stream;

    use super::*;

    /// A body of `head` and then endless pieces of `filler`, and how many bytes of it were taken.
    fn endless(head: &'static [u8], filler: &'static [u8]) -> (Content, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&taken);
        let pieces = stream::iter([head]).chain(stream::repeat(filler));
        let content = pieces.map(move |piece| {
            counted.fetch_add(piece.len() as u64, Ordering::Relaxed);
            Ok(Bytes::from_static(piece))
        });
        (content.boxed(), taken)
    }

    #[tokio::test]
    async fn what_never_ends_before_the_file_is_refused_when_little_of_it_was_taken() {
        const FILLER: &[u8] = &[b'a'; 4096];
        for head in [
            b"".as_slice(),
            b"--XX\r\ncontent-disposition: form-data; name=\"file",
            b"--XX\r\ncontent-disposition: form-data; name=\"file\"\r\nx-more: ",
            b"--XX\r\ncontent-disposition: form-data; name=\"other\"\r\n\r\n",
        ] {
            let (content, taken) = endless(head, FILLER);
            let refused = match file(content, "XX".to_owned(), "file").await {
                Ok(_) => panic!("{}", head.escape_ascii()),
                Err(refused) => refused,
            };
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", head.escape_ascii());
            let taken = taken.load(Ordering::Relaxed);
            assert!(taken <= (MAX_BEFORE + 2 * FILLER.len()) as u64, "{taken} bytes of {}", head.escape_ascii());
        }
        let (content, _) = endless(b"", b"--XX\r\ncontent-disposition: form-data; name=\"o\"\r\n\r\n\r\n");
        assert!(file(content, "XX".to_owned(), "file").await.is_err());
    }

    #[tokio::test]
    async fn a_long_file_is_passed_on_as_it_comes() {
        const FILLER: &[u8] = &[b'a'; 4096];
        let head = b"--XX\r\ncontent-disposition: form-data; name=\"file\"\r\n\r\n";
        let (content, taken) = endless(head, FILLER);
        let mut file = file(content, "XX".to_owned(), "file").await.unwrap();
        let mut got = 0;
        while got < 4 << 20 {
            got += file.next().await.unwrap().unwrap().len() as u64;
            let ahead = taken.load(Ordering::Relaxed) - got;
            assert!(ahead <= (2 * FILLER.len() + head.len()) as u64, "{ahead} bytes are kept");
        }
    }
}
