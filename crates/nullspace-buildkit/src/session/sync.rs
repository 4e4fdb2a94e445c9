//! FileSync: a tree, sent as fsutil sends it.
//!
//! ```text
//!   BuildKit ── DiffCopy(dir-name, include-patterns, exclude-patterns, followpaths) ──> here
//!        <── STAT entry 0, STAT entry 1, … , STAT (empty: that was all)
//!        ── REQ 17 ──>           which files it lacks; their numbers are places in the list
//!        <── DATA 17 …, DATA 17 (empty: the end)
//!        ── FIN ──>   <── FIN
//! ```
//! Files are read when asked for, one after another, in pieces that wait for BuildKit to take them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bollard_buildkit_proto::fsutil::types::packet::PacketType;
use bollard_buildkit_proto::fsutil::types::{Packet, Stat};
use bollard_buildkit_proto::moby::filesync::v1::file_sync_server::FileSync;
use percent_encoding::percent_decode;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use crate::job::Job;
use crate::patterns::Filter;
use crate::tree::{Entry, Source, Tree};

/// A piece of a file, as fsutil sends it.
const PIECE: usize = 32 * 1024;
/// Packets that wait to be taken.
const WAITING: usize = 16;
/// Bits of Go's `os.FileMode`.
const GO_DIRECTORY: u32 = 1 << 31;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_STICKY: u32 = 1 << 20;

/// The trees of a job, by name.
#[derive(Debug)]
pub(super) struct Files {
    context: Arc<Tree>,
    dockerfile: Arc<Tree>,
}

impl Files {
    pub(super) fn new(job: &Job) -> Files {
        Files { context: Arc::clone(&job.context), dockerfile: Arc::clone(&job.dockerfile) }
    }
}

type Packets = mpsc::Sender<Result<Packet, Status>>;

#[async_trait::async_trait]
impl FileSync for Files {
    type DiffCopyStream = ReceiverStream<Result<Packet, Status>>;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Self::DiffCopyStream>, Status> {
        let asked = request.metadata();
        let tree = match values(asked, "dir-name").first().map(String::as_str) {
            Some("context") => &self.context,
            Some("dockerfile") => &self.dockerfile,
            other => return Err(Status::not_found(format!("there is no directory {other:?}"))),
        };
        let [include, follow, exclude] =
            ["include-patterns", "followpaths", "exclude-patterns"].map(|key| values(asked, key));
        let filter =
            Filter::new(&include, &follow, &exclude).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let tree = Arc::clone(tree);
        let requests = request.into_inner();
        let (packets, stream) = mpsc::channel(WAITING);
        // Ends when the stream's reader goes: with the call, or the connection.
        tokio::spawn(async move {
            let wanted = filter.of(&tree);
            if let Err(Some(status)) = send(&wanted, requests, &packets).await {
                let _ = packets.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type TarStreamStream = ReceiverStream<Result<Packet, Status>>;

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("ask with DiffCopy"))
    }
}

/// A header's values. Newer BuildKits escape them when one is not ASCII, and say so in another header.
fn values(asked: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = asked.get(format!("{key}-encoded")).is_some_and(|value| value.as_bytes() == b"1");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    asked
        .get_all(key)
        .iter()
        .map(|value| if encoded { text(&unescaped(value.as_bytes())) } else { text(value.as_bytes()) })
        .collect()
}

/// Go's `url.QueryUnescape`.
fn unescaped(bytes: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).collect()
}

fn packet(kind: PacketType) -> Packet {
    Packet { r#type: kind.into(), ..Packet::default() }
}

fn stat(path: &str, entry: &Entry) -> Stat {
    let mut mode = entry.mode & 0o777;
    for (bit, go) in [(0o4000, GO_SETUID), (0o2000, GO_SETGID), (0o1000, GO_STICKY)] {
        if entry.mode & bit != 0 {
            mode |= go;
        }
    }
    let size = match &entry.source {
        None => {
            mode |= GO_DIRECTORY;
            0
        }
        Some(source) => i64::try_from(source.bytes()).unwrap_or(i64::MAX),
    };
    Stat { path: path.to_owned(), mode, size, ..Stat::default() }
}

/// Sends the list and then what is asked for. `Err(None)`: the other side is gone.
async fn send(
    wanted: &[(String, &Entry)],
    mut requests: Streaming<Packet>,
    packets: &Packets,
) -> Result<(), Option<Status>> {
    let mut files = HashMap::new();
    // Requests come while the list is still being sent. There are at most as many as files: each is answered once.
    let (asked, mut to_send) = mpsc::unbounded_channel();
    for (index, (path, entry)) in wanted.iter().enumerate() {
        if let Some(source) = &entry.source {
            let id = u32::try_from(index).map_err(|_| Some(Status::out_of_range("too many files")))?;
            files.insert(id, (path.clone(), source.clone()));
        }
    }
    let listing = async {
        for (path, entry) in wanted {
            put(packets, Packet { stat: Some(stat(path, entry)), ..packet(PacketType::PacketStat) }).await?;
        }
        put(packets, packet(PacketType::PacketStat)).await
    };
    let reading = async {
        loop {
            let Some(request) = requests.message().await.map_err(|_| None)? else { return Err(None) };
            match PacketType::try_from(request.r#type) {
                Ok(PacketType::PacketReq) => {
                    let file = files.remove(&request.id);
                    let file =
                        file.ok_or_else(|| Some(Status::invalid_argument("no such file, or asked for twice")))?;
                    // Closed only when the sender below has failed, which is then the answer.
                    let _ = asked.send((request.id, file));
                }
                Ok(PacketType::PacketFin) => break,
                Ok(PacketType::PacketErr) => {
                    let why = String::from_utf8_lossy(&request.data).into_owned();
                    tracing::debug!(why, "BuildKit gave up on a context");
                    return Err(None);
                }
                _ => return Err(Some(Status::invalid_argument("unexpected packet"))),
            }
        }
        drop(asked);
        Ok(())
    };
    let sending = async {
        while let Some((id, (path, source))) = to_send.recv().await {
            contents(id, &source, packets).await.map_err(|error| match error {
                Lost::Reader => None,
                Lost::File(error) => {
                    tracing::warn!(%error, path, "a file of a build context cannot be read");
                    Some(Status::internal(format!("a file of the context cannot be read: {path}")))
                }
            })?;
        }
        Ok(())
    };
    tokio::try_join!(listing, reading, sending)?;
    put(packets, packet(PacketType::PacketFin)).await
}

async fn put(packets: &Packets, packet: Packet) -> Result<(), Option<Status>> {
    packets.send(Ok(packet)).await.map_err(|_| None)
}

enum Lost {
    Reader,
    File(io::Error),
}

/// One file, from its first byte to the empty piece that ends it.
async fn contents(id: u32, source: &Source, packets: &Packets) -> Result<(), Lost> {
    let data = |data: &[u8]| Packet { id, data: data.to_vec(), ..packet(PacketType::PacketData) };
    let gone = |_| Lost::Reader;
    match source {
        Source::Memory(bytes) => {
            for piece in bytes.chunks(PIECE) {
                packets.send(Ok(data(piece))).await.map_err(gone)?;
            }
        }
        Source::File { path, bytes } => {
            let file = tokio::fs::File::open(path).await.map_err(Lost::File)?;
            let mut file = file.take(*bytes);
            let mut buffer = vec![0; PIECE];
            let mut left = *bytes;
            while left > 0 {
                let read = file.read(&mut buffer).await.map_err(Lost::File)?;
                if read == 0 {
                    return Err(Lost::File(io::ErrorKind::UnexpectedEof.into()));
                }
                left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
                let piece = buffer.get(..read).unwrap_or_default();
                packets.send(Ok(data(piece))).await.map_err(gone)?;
            }
        }
    }
    packets.send(Ok(data(&[]))).await.map_err(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos_and_escaped_headers_are_read() {
        let entry = |mode, source| Entry { mode, source };
        let memory = Source::Memory(bytes::Bytes::from_static(b"abc"));
        let file = stat("a", &entry(0o4755, Some(memory)));
        assert_eq!((file.mode, file.size), (0o755 | GO_SETUID, 3));
        assert_eq!(stat("d", &entry(0o1777, None)).mode, 0o777 | GO_STICKY | GO_DIRECTORY);
        let mut asked = MetadataMap::new();
        asked.append("followpaths", "a+b".parse().unwrap());
        asked.append("followpaths", "c".parse().unwrap());
        assert_eq!(values(&asked, "followpaths"), ["a+b", "c"]);
        asked.insert("followpaths-encoded", "1".parse().unwrap());
        asked.append("followpaths", "%C3%A9%2B%".parse().unwrap());
        assert_eq!(values(&asked, "followpaths"), ["a b", "c", "é+%"]);
    }
}
