//! The protocol between host and guest agent: frames, messages, and the host's client.
//!
//! One duplex byte stream joins the host and the agent in the guest (virtio-serial under QEMU, vsock under
//! Firecracker). Frames on it carry numbered channels; a channel is one operation: the host opens it with a
//! [`message::Request`], the agent answers, streams data under credit, and ends it.
//!
//! ```text
//!  host                                       guest (nullspace-init)
//!   HELLO  session=S  ------------------------->  drop every channel of older sessions, adopt S
//!          <------------------------- HELLO_ACK   AgentInfo
//!   OPEN   ch=1 Exec{..}  --------------------->
//!          <--------------------- REPLY ch=1      Started{pid}
//!   DATA   ch=1 stdin  ------------------------>
//!          <------------- DATA ch=1 stdout|stderr  (at most the credit granted by WINDOW)
//!   WINDOW ch=1 +n ---------------------------->
//!          <----------------------- END ch=1      Exit{..} | Error{..}; the channel number is dead
//! ```
//!
//! A snapshot may catch half a frame in a queue. Hence every frame repeats the session that the host drew at random:
//! a host that meets bytes of an older session skips them until its own `HELLO_ACK`, and an agent that meets a new
//! `HELLO` forgets the old session. Nothing here knows of templates, tenants or VMMs.

pub mod capability;
pub mod file;
pub mod frame;
#[cfg(feature = "host")]
pub mod host;
pub mod message;
pub mod search;
pub mod terminal;
pub mod upload;
pub mod watch;
