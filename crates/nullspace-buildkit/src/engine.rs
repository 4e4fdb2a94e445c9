//! The Docker Engine's own API, for what its BuildKit cannot do: send an image as an archive.
//!
//! Before Docker 23 the BuildKit inside an engine has no exporter that sends images. There the image gets a name of this
//! job's own in the engine, is saved through the API, and removed.

use std::io;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};

use crate::connect::Connector;
use crate::error::Error;
use crate::failure::{Cause, Failure};
use crate::session::{Archives, Broken};

/// For the words of a refusal.
const REFUSAL: Duration = Duration::from_secs(10);
/// Bytes of an answer that is no archive.
const MAX_TEXT: usize = 1 << 20;

/// Images of an engine.
pub(crate) struct Images<'a>(pub(crate) &'a Connector);

impl Images<'_> {
    /// Writes the image's archive, as `docker save` does, to the job's file.
    pub(crate) async fn save(&self, name: &str, archives: &Archives) -> Result<(), Error> {
        let unavailable = |what: String| Error::Unavailable { endpoint: self.0.endpoint.to_string(), what };
        let failed = |error: io::Error| unavailable(format!("does not give the image it built: {error}"));
        let response = self.0.api(Method::GET, &format!("/images/{name}/get")).await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            return Err(self.not_given(response).await);
        }
        match archives.write(response.into_data_stream()).await {
            Ok(()) => Ok(()),
            Err(Broken::Ours(error)) => Err(error),
            Err(Broken::Theirs(error)) => Err(failed(io::Error::other(error))),
        }
    }

    /// Why an engine that answers does not give an image. It is there, and has built.
    async fn not_given(&self, response: hyper::Response<hyper::body::Incoming>) -> Error {
        #[derive(serde::Deserialize)]
        struct Refusal {
            message: String,
        }
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_TEXT).collect();
        let text = tokio::time::timeout(REFUSAL, body).await.ok().and_then(Result::ok);
        let refusal = text.and_then(|text| serde_json::from_slice::<Refusal>(&text.to_bytes()).ok());
        let said: String = refusal.map(|refusal| refusal.message.chars().take(300).collect()).unwrap_or_default();
        // What `docker save` says of an image without a single layer, to this day (moby, image/tarexport/save.go).
        if said.contains("empty export") {
            return Error::Failed(Failure { message: said, cause: Cause::NoLayers, step: None });
        }
        Error::NotExported { endpoint: self.0.endpoint.to_string(), what: format!("answers {status}: {said}") }
    }

    /// Takes the name off an image, and with the last name the image away. It may be gone already.
    pub(crate) async fn remove(&self, name: &str) -> io::Result<()> {
        let response = self.0.api(Method::DELETE, &format!("/images/{name}?force=1")).await?;
        match response.status() {
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            status => Err(io::Error::other(format!("the engine answers {status}"))),
        }
    }

    /// Names of images in this repository.
    pub(crate) async fn named(&self, repository: &str) -> io::Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Image {
            #[serde(rename = "RepoTags")]
            tags: Option<Vec<String>>,
        }
        // `{"reference":["name"]}`, escaped for a URL.
        let filters = format!("%7B%22reference%22%3A%5B%22{repository}%22%5D%7D");
        let response = self.0.api(Method::GET, &format!("/images/json?filters={filters}")).await?;
        let body = http_body_util::Limited::new(response.into_body(), MAX_TEXT);
        let text = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let images: Vec<Image> = serde_json::from_slice(&text)?;
        let names = images.into_iter().flat_map(|image| image.tags.unwrap_or_default());
        let inside = format!("{repository}:");
        Ok(names.filter(|name| name.starts_with(&inside)).collect())
    }

    /// The engine's version.
    pub(crate) async fn version(&self) -> io::Result<String> {
        #[derive(serde::Deserialize)]
        struct Version {
            #[serde(rename = "Version")]
            version: String,
        }
        let response = self.0.api(Method::GET, "/version").await?;
        let body = http_body_util::Limited::new(response.into_body(), MAX_TEXT);
        let text = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(serde_json::from_slice::<Version>(&text)?.version)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::endpoint::Endpoint;

    /// An engine that answers every request with this.
    fn engine(folder: &Path, status: &'static str, body: &'static str) -> Connector {
        let socket = folder.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
            }
        });
        Connector::new(Endpoint::Docker(socket), None)
    }

    async fn refusal(status: &'static str, body: &'static str) -> Error {
        let folder = tempfile::tempdir().unwrap();
        let connector = engine(folder.path(), status, body);
        let archives = Archives::new(folder.path().join("archive"), 1 << 20);
        Images(&connector).save("image:1", &archives).await.unwrap_err()
    }

    #[tokio::test]
    async fn an_engine_that_refuses_an_export_is_not_gone() {
        for (status, body) in [
            ("500 Internal Server Error", r#"{"message":"write /tmp/x: no space left on device"}"#),
            ("503 Service Unavailable", "<html>"),
            ("404 Not Found", r#"{"message":"no such image"}"#),
        ] {
            let error = refusal(status, body).await;
            assert!(matches!(&error, Error::NotExported { what, .. } if what.contains(&status[..3])), "{error:?}");
        }
        let empty = refusal("500 Internal Server Error", r#"{"message":"empty export - not implemented"}"#).await;
        assert!(matches!(&empty, Error::Failed(failure) if failure.cause == Cause::NoLayers), "{empty:?}");
    }
}
