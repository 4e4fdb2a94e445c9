//! What the SSH server asks of the service: logins, and what a session does in a sandbox.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::{ExecRequest, PtyStart, ResizeRequest};
use nullspace_service::{
    FollowedCommand, FollowedTerminal, LiveSandbox, PortStream, Result, Sandboxes, SshAccesses, SshEntered, SshLogin,
    TerminalAt,
};
use nullspace_types::SshAccessId;

/// A running sandbox, as far as SSH uses it.
#[async_trait]
pub(crate) trait Inside: Send + Sync + 'static {
    async fn run(&self, request: ExecRequest) -> Result<FollowedCommand>;
    async fn send_stdin(&self, pid: u32, data: &[u8], close: bool) -> Result<()>;
    async fn signal(&self, pid: u32, signal: i32) -> Result<()>;
    async fn open_terminal(&self, request: PtyStart) -> Result<FollowedTerminal>;
    async fn type_into(&self, pid: u32, data: &[u8]) -> Result<()>;
    async fn resize(&self, pid: u32, size: ResizeRequest) -> Result<()>;
    async fn end_terminal(&self, pid: u32) -> Result<()>;
    async fn dial(&self, port: u16) -> Result<PortStream>;
}

/// Decides about logins, and finds sandboxes.
#[async_trait]
pub(crate) trait Gate: Send + Sync + 'static {
    /// As [`SshAccesses::ssh_login`].
    async fn login(&self, login: SshLogin) -> Result<SshEntered>;

    /// As [`SshAccesses::ssh_accesses_in_force`].
    async fn in_force(&self, accesses: &[SshAccessId]) -> Result<Vec<SshAccessId>>;

    /// As [`Sandboxes::live_sandbox`]: a paused one with `auto_resume` is resumed first.
    async fn sandbox(&self, entered: &SshEntered) -> Result<Arc<dyn Inside>>;
}

/// The service's decisions.
pub(crate) struct OfService<S>(pub(crate) Arc<S>);

#[async_trait]
impl<S: SshAccesses + Sandboxes> Gate for OfService<S> {
    async fn login(&self, login: SshLogin) -> Result<SshEntered> {
        self.0.ssh_login(login).await
    }

    async fn in_force(&self, accesses: &[SshAccessId]) -> Result<Vec<SshAccessId>> {
        self.0.ssh_accesses_in_force(accesses).await
    }

    async fn sandbox(&self, entered: &SshEntered) -> Result<Arc<dyn Inside>> {
        let live = self.0.live_sandbox(&entered.caller, &entered.sandbox.to_string()).await?;
        Ok(Arc::new(Live(live)))
    }
}

struct Live(Arc<dyn LiveSandbox>);

#[async_trait]
impl Inside for Live {
    async fn run(&self, request: ExecRequest) -> Result<FollowedCommand> {
        Arc::clone(&self.0).run_command(request).await
    }

    async fn send_stdin(&self, pid: u32, data: &[u8], close: bool) -> Result<()> {
        self.0.send_stdin(pid, data, close).await
    }

    async fn signal(&self, pid: u32, signal: i32) -> Result<()> {
        self.0.kill_process(pid, signal).await
    }

    async fn open_terminal(&self, request: PtyStart) -> Result<FollowedTerminal> {
        Arc::clone(&self.0).open_terminal(request).await
    }

    async fn type_into(&self, pid: u32, data: &[u8]) -> Result<()> {
        self.0.type_into_terminal(pid, data).await
    }

    async fn resize(&self, pid: u32, size: ResizeRequest) -> Result<()> {
        self.0.resize_terminal(TerminalAt::Pid(pid), size).await
    }

    async fn end_terminal(&self, pid: u32) -> Result<()> {
        self.0.kill_terminal(TerminalAt::Pid(pid)).await
    }

    async fn dial(&self, port: u16) -> Result<PortStream> {
        Arc::clone(&self.0).dial(port).await
    }
}
