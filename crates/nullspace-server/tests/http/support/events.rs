//! The fake service's lifecycle events.

use std::sync::Mutex;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::*;
use nullspace_service::{Caller, Error, EventQuery, EventStream, Events, Result};
use serde_json::json;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::{Fake, letter};

/// Events that a follower may be behind.
pub(crate) const BEHIND: usize = 16;

/// What has happened, and who follows it.
pub(crate) struct History {
    past: Mutex<Vec<LifecycleEventInfo>>,
    present: broadcast::Sender<LifecycleEventInfo>,
}

impl Default for History {
    fn default() -> Self {
        Self { past: Mutex::default(), present: broadcast::channel(BEHIND).0 }
    }
}

impl History {
    /// Records that an operation succeeded.
    pub(crate) fn record(
        &self,
        operation: LifecycleOperation,
        sandbox: &str,
        snapshot: Option<&str>,
        metadata: &[(&str, &str)],
    ) {
        self.push(|event| {
            event.operation = operation;
            event.sandbox_id = Some(sandbox.to_owned());
            event.snapshot_id = snapshot.map(ToOwned::to_owned);
            event.metadata = metadata.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        });
    }

    /// Records that `target` was made from the snapshot of `source`.
    pub(super) fn resumed(&self, target: &str, source: &str, snapshot: &str) {
        self.push(|event| {
            event.operation = LifecycleOperation::ResumeFromSnapshot;
            event.sandbox_id = Some(target.to_owned());
            event.target_sandbox_id = Some(target.to_owned());
            event.source_sandbox_id = Some(source.to_owned());
            event.snapshot_id = Some(snapshot.to_owned());
        });
    }

    fn push(&self, change: impl FnOnce(&mut LifecycleEventInfo)) {
        let mut past = self.past.lock().unwrap();
        let number = past.len();
        let mut event = LifecycleEventInfo {
            id: format!("00000000-0000-7000-8000-{number:012}"),
            occurred_at: Time::from_microsecond(1_700_000_000_000_000 + i64::try_from(number).unwrap()).unwrap(),
            audience: LifecycleAudience::Customer,
            operation: LifecycleOperation::Create,
            status: LifecycleStatus::Succeeded,
            actor_kind: LifecycleActorKind::User,
            metadata: JsonObject::new(),
            sandbox_id: None,
            snapshot_id: None,
            source_sandbox_id: None,
            target_sandbox_id: None,
            user_id: None,
            reason: None,
            error_code: None,
            error_message: None,
        };
        change(&mut event);
        past.push(event.clone());
        // Nobody needs to listen.
        let _ = self.present.send(event);
    }

    /// Those who follow.
    pub(crate) fn followers(&self) -> usize {
        self.present.receiver_count()
    }
}

/// Whether an event is the caller's and fits. All events are of the tenant `a`.
fn fits(caller: &Caller, query: &EventQuery, event: &LifecycleEventInfo) -> bool {
    let EventQuery {
        about_sandbox,
        sandbox_id,
        snapshot_id,
        source_sandbox_id,
        target_sandbox_id,
        operation,
        status,
        from,
        to,
        ..
    } = query;
    let same = |wanted: &Option<String>, given: &Option<String>| wanted.is_none() || wanted == given;
    let named = [&event.sandbox_id, &event.source_sandbox_id, &event.target_sandbox_id];
    let at = event.occurred_at.timestamp();
    letter(caller) == "a"
        && (about_sandbox.is_none() || named.contains(&about_sandbox))
        && same(sandbox_id, &event.sandbox_id)
        && same(snapshot_id, &event.snapshot_id)
        && same(source_sandbox_id, &event.source_sandbox_id)
        && same(target_sandbox_id, &event.target_sandbox_id)
        && operation.is_none_or(|operation| operation == event.operation)
        && status.is_none_or(|status| status == event.status)
        && from.is_none_or(|from| from <= at)
        && to.is_none_or(|to| at <= to)
}

#[async_trait]
impl Events for Fake {
    async fn list_events(&self, caller: &Caller, query: EventQuery) -> Result<LifecycleEventListResponse> {
        self.call(format!("list_events {} offset {} limit {:?}", letter(caller), query.offset, query.limit));
        if query.snapshot_id.as_ref().is_some_and(|id| !id.starts_with("snap_")) {
            return Err(Error::invalid("snapshot_id is not an id of that kind"));
        }
        let past = self.events.past.lock().unwrap();
        let mut events: Vec<_> = past.iter().filter(|event| fits(caller, &query, event)).cloned().collect();
        if query.order == LifecycleOrder::Desc {
            events.reverse();
        }
        let limit = query.limit.unwrap_or(50);
        let mut rest = events.into_iter().skip(usize::try_from(query.offset).unwrap());
        let events = rest.by_ref().take(limit as usize).collect();
        Ok(LifecycleEventListResponse { events, offset: query.offset, limit, has_more: rest.next().is_some() })
    }

    async fn follow_events(
        &self,
        caller: &Caller,
        query: EventQuery,
        after: Option<String>,
        replay: u32,
    ) -> Result<EventStream> {
        if after.as_ref().is_some_and(|after| after.len() != 36) {
            return Err(Error::invalid("`after_event_id` must be the id of an event."));
        }
        self.call(format!("follow_events {} after {after:?} replay {replay}", letter(caller)));
        let past = self.events.past.lock().unwrap();
        let present = self.events.present.subscribe();
        let fit = past.iter().filter(|event| fits(caller, &query, event));
        let before: Vec<_> = match &after {
            Some(after) => fit.filter(|event| event.id > *after).cloned().map(Ok).collect(),
            None => {
                let mut newest: Vec<_> = fit.rev().take(replay as usize).cloned().map(Ok).collect();
                newest.reverse();
                newest
            }
        };
        let caller = caller.clone();
        let live = stream::unfold((present, caller, query), |(mut present, caller, query)| async move {
            loop {
                match present.recv().await {
                    Ok(event) if !fits(&caller, &query, &event) => {}
                    Ok(event) => return Some((Ok(event), (present, caller, query))),
                    Err(RecvError::Lagged(_)) => {
                        let message = "The reader is too slow: connect again with after_event_id.";
                        let error = Error::new(ErrorResponseCode::RateLimitExceeded, message);
                        return Some((Err(error), (present, caller, query)));
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        Ok(stream::iter(before).chain(live).boxed())
    }
}
