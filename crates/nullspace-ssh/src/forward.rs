//! A forwarded port: a channel joined to a connection to a port of the sandbox's loopback. Each direction ends on its own.

use std::time::Duration;

use bytes::BytesMut;
use nullspace_service::{PortStream, chain};
use russh::ChannelOpenFailure;
use russh::server::ChannelOpenHandle;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::flow::Flow;
use crate::program::{Input, Inputs, Output, Session};

/// Time limit of a connection to a port, with the resume of a paused sandbox.
const DIALLING: Duration = Duration::from_secs(60);
/// Time after which a server that reads nothing is given up, when its connection to the client has no space for other input.
const STALLED: Duration = Duration::from_secs(30);
/// Most bytes that are read at once.
const AT_ONCE: usize = 32 << 10;

/// True for the names of the sandbox itself: no other host is reached for a client.
pub(crate) fn is_inside(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "::1" | "[::1]")
}

/// Connects a channel that is about to open to a port, and passes bytes on until both directions or the channel end.
pub(crate) async fn forward(session: Session, port: u16, reply: ChannelOpenHandle) {
    let Session { gate, entered, output, inputs, ended } = session;
    let dialled = async { gate.sandbox(&entered).await?.dial(port).await };
    let dialled = tokio::select! {
        () = ended.cancelled() => return,
        dialled = tokio::time::timeout(DIALLING, dialled) => dialled,
    };
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(port, cause = chain(&error), "a forwarded port is not reached");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return;
        }
        Err(_) => {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return;
        }
    };
    reply.accept().await;
    let (read, write) = tokio::io::split(stream);
    let both = async {
        tokio::try_join!(to_port(inputs, write, &output.flow), to_client(read, &output))?;
        Ok::<_, Over>(())
    };
    tokio::select! {
        () = ended.cancelled() => return,
        _ = both => {}
    }
    tokio::select! {
        () = ended.cancelled() => {}
        _ = output.close() => {}
    }
}

/// One end has gone, or does not go on.
struct Over;

async fn to_port(mut inputs: Inputs, mut write: WriteHalf<PortStream>, flow: &Flow) -> Result<(), Over> {
    while let Some(input) = inputs.recv().await {
        match &input.item {
            Input::Data(bytes) => {
                let writing = write.write_all(bytes);
                tokio::pin!(writing);
                loop {
                    match tokio::time::timeout(STALLED, &mut writing).await {
                        Ok(written) => break written.map_err(|_| Over)?,
                        Err(_) if flow.is_full() => return Err(Over),
                        Err(_) => {}
                    }
                }
            }
            Input::Eof => return write.shutdown().await.map_err(|_| Over),
            Input::Resize(_) | Input::Signal(_) => {}
        }
    }
    Err(Over)
}

async fn to_client(mut read: ReadHalf<PortStream>, output: &Output) -> Result<(), Over> {
    loop {
        let mut bytes = BytesMut::with_capacity(AT_ONCE);
        match read.read_buf(&mut bytes).await {
            Ok(0) => return output.eof().await.map_err(|_| Over),
            Ok(_) => output.stdout(bytes.freeze()).await.map_err(|_| Over)?,
            Err(_) => return Err(Over),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sandbox_itself_is_inside() {
        for host in ["localhost", "127.0.0.1", "::1"] {
            assert!(is_inside(host), "{host}");
        }
        for host in
            ["", "127.0.0.2", "0.0.0.0", "169.254.169.254", "10.0.0.1", "localhost.", "example.org", "LOCALHOST "]
        {
            assert!(!is_inside(host), "{host}");
        }
    }
}
