//! Commands of sandboxes that are followed: the HTTP layer's requests, done by the engine.

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::ExecRequest;
use nullspace_engine::{Command, CommandEvent as Event};
use nullspace_server::{Caller, CommandEvent, CommandService, FollowedCommand, ServiceError};

use crate::service::{EngineService, domain, error};

fn followed(command: Command) -> FollowedCommand {
    let (pid, lost) = (command.pid, command.lost);
    let events = stream::unfold(Some(command), |command| async move {
        let mut command = command?;
        match command.next().await {
            Ok(None) => None,
            Ok(Some(event)) => {
                let event = match event {
                    Event::Stdout(bytes) => CommandEvent::Stdout(bytes),
                    Event::Stderr(bytes) => CommandEvent::Stderr(bytes),
                    Event::Exit { code, timed_out } => CommandEvent::Exit { code, timed_out },
                };
                Some((Ok(event), Some(command)))
            }
            Err(failed) => Some((Err(error(failed)), None)),
        }
    });
    FollowedCommand { pid, lost, events: events.boxed() }
}

#[async_trait]
impl CommandService for EngineService {
    async fn check_running(&self, caller: &Caller, id: &str) -> Result<(), ServiceError> {
        self.0.check_running(&domain(caller)?, id).await.map_err(error)
    }

    async fn run_command(
        &self,
        caller: &Caller,
        id: &str,
        request: ExecRequest,
    ) -> Result<FollowedCommand, ServiceError> {
        self.0.run_command(&domain(caller)?, id, request).await.map(followed).map_err(error)
    }

    async fn connect_command(&self, caller: &Caller, id: &str, pid: u32) -> Result<FollowedCommand, ServiceError> {
        self.0.connect_command(&domain(caller)?, id, pid).await.map(followed).map_err(error)
    }

    async fn send_stdin(&self, caller: &Caller, id: &str, pid: u32, data: &[u8]) -> Result<(), ServiceError> {
        self.0.send_stdin(&domain(caller)?, id, pid, data).await.map_err(error)
    }
}
