use std::collections::VecDeque;
use std::sync::Mutex;

use nullspace_api::{LifecycleEventInfo, LifecycleOperation};
use nullspace_db::Webhook;
use nullspace_types::SandboxId;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::record::{Event, State};
use super::super::send::signature;
use super::super::send::tests::sender;
use super::super::tests::{Store, store};
use super::*;

const SECRET: &str = "a secret of the receiver";

/// How a receiver answers.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Status(u16),
    /// Status 307, to itself.
    Redirect,
    /// Status 200, then a body without an end.
    Endless,
    /// Nothing.
    Silent,
}

/// A request that has arrived.
#[derive(Debug)]
struct Arrived {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Arrived {
    fn header(&self, name: &str) -> &str {
        let found = self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("{name} in {:?}", self.head))
    }
}

/// A receiver on loopback. It answers in turn, the last answer for ever.
async fn receiver(answers: &[Answer]) -> (u16, mpsc::UnboundedReceiver<Arrived>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = Arc::new(Mutex::new(VecDeque::from(answers.to_vec())));
    let (sender, arrived) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (answers, sender) = (Arc::clone(&answers), sender.clone());
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.unwrap() == 0 {
                        return;
                    }
                    match line.trim_end() {
                        "" => break,
                        line => head.push(line.to_owned()),
                    }
                }
                let mut arrived = Arrived { head, body: Vec::new() };
                arrived.body = vec![0; arrived.header("content-length").parse().unwrap()];
                stream.read_exact(&mut arrived.body).await.unwrap();
                let answer = {
                    let mut answers = answers.lock().unwrap();
                    if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] }
                };
                sender.send(arrived).unwrap();
                let text = match answer {
                    Answer::Status(status) => {
                        format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                    }
                    Answer::Redirect => format!(
                        "HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:{port}/moved\r\nContent-Length: 0\r\nConnection: \
                         close\r\n\r\n"
                    ),
                    Answer::Endless => "HTTP/1.1 200 x\r\n\r\n".to_owned(),
                    Answer::Silent => {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        return;
                    }
                };
                stream.write_all(text.as_bytes()).await.unwrap();
                while matches!(answer, Answer::Endless) && stream.write_all(&[b'x'; 1024]).await.is_ok() {}
            });
        }
    });
    (port, arrived)
}

/// A tenant with one webhook, and the service's side of it.
struct Side {
    store: Store,
    state: Arc<State>,
    webhook: Webhook,
    deliverer: Deliverer,
    stop: CancellationToken,
}

impl Side {
    /// `listed`: hosts that the operator permits.
    async fn new(url: String, listed: &[&str]) -> Side {
        let store = store().await;
        let seal = SealKey::parse(&SealKey::generate().unwrap()).unwrap();
        let (id, now) = (Uuid::now_v7(), Timestamp::now());
        let webhook = Webhook {
            id,
            tenant: store.caller.tenant,
            url,
            operations: vec!["fork".to_owned()],
            sealed_secret: seal.seal(&id.to_string(), SECRET.as_bytes()).unwrap(),
            enabled: true,
            created_at: now,
            updated_at: now,
            last: None,
        };
        let webhook = store.db.insert_webhook(webhook, 20).await.unwrap();
        let pace = Pace {
            lease: SignedDuration::from_secs(60),
            attempts: 3,
            first: Duration::from_millis(20),
            longest: Duration::from_millis(40),
        };
        let state = Arc::new(State::default());
        let deliverer = Deliverer {
            db: store.db.clone(),
            host: "host".to_owned(),
            seal,
            sender: sender(listed, Duration::from_secs(2)),
            counts: state.counts().clone(),
            pace,
        };
        Side { store, state, webhook, deliverer, stop: CancellationToken::new() }
    }

    /// Records a fork.
    async fn fork(&self) -> SandboxId {
        let sandbox = SandboxId::new();
        let event = Event::succeeded(self.store.caller.tenant, LifecycleOperation::Fork).sandbox(sandbox);
        self.state.record(event.detail("created_via", "fork"));
        self.state.flush(&*self.store.db).await.unwrap();
        sandbox
    }

    fn run(&self) {
        let (deliverer, state, stop) = (self.deliverer.clone(), Arc::clone(&self.state), self.stop.clone());
        tokio::spawn(async move { deliverer.run(&state.due, &stop).await });
    }

    /// The only delivery, once it has this state.
    async fn delivery(&self, status: &str) -> (nullspace_db::Delivery, Vec<Attempt>) {
        let caller = &self.store.caller;
        let ended = async {
            loop {
                let deliveries = self.store.db.list_deliveries(caller, self.webhook.id, 0, 10).await.unwrap();
                assert!(deliveries.len() <= 1, "{deliveries:?}");
                if let Some(delivery) = deliveries.into_iter().find(|delivery| delivery.delivery_status == status) {
                    let found = self.store.db.get_delivery(caller, self.webhook.id, delivery.id).await.unwrap();
                    return (delivery, found.2);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the delivery has that state")
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn errors(attempts: &[Attempt]) -> Vec<(Option<u16>, &str)> {
    attempts
        .iter()
        .map(|attempt| (attempt.response_status, attempt.error.as_ref().map_or("", |(code, _)| code.as_str())))
        .collect()
}

#[tokio::test]
async fn an_event_arrives_signed_and_is_sent_again_after_a_500() {
    let (port, mut arrived) = receiver(&[Answer::Status(500), Answer::Status(204)]).await;
    let side = Side::new(format!("http://hooks.test:{port}/in?x=1"), &["127.0.0.1"]).await;
    side.run();
    let sandbox = side.fork().await;
    let (delivery, attempts) = side.delivery("succeeded").await;
    assert_eq!(errors(&attempts), [(Some(500), "refused"), (Some(204), "")]);
    assert_eq!((delivery.attempts, delivery.last_response_status), (2, Some(204)));
    let (first, second) = (arrived.recv().await.unwrap(), arrived.recv().await.unwrap());
    assert_eq!(first.body, second.body);
    assert_eq!(first.head[0], "POST /in?x=1 HTTP/1.1");
    let event: LifecycleEventInfo = serde_json::from_slice(&first.body).unwrap();
    assert_eq!((event.sandbox_id, event.operation), (Some(sandbox.to_string()), LifecycleOperation::Fork));
    assert_eq!(event.metadata["created_via"], "fork");
    for request in [first, second] {
        assert_eq!(request.header("x-nullspace-event-id"), event.id);
        assert_eq!(request.header("x-nullspace-delivery-id"), delivery.id.to_string());
        assert_eq!(request.header("x-nullspace-operation"), "fork");
        assert_eq!(request.header("content-type"), "application/json");
        let time = request.header("x-nullspace-timestamp").parse().unwrap();
        let signed = format!("t={time},v1={}", signature(SECRET.as_bytes(), time, &request.body));
        assert_eq!(request.header("x-nullspace-signature"), signed);
    }
}

#[tokio::test]
async fn what_is_refused_every_time_is_a_dead_letter() {
    let (port, mut arrived) = receiver(&[Answer::Status(410), Answer::Redirect]).await;
    let side = Side::new(format!("http://127.0.0.1:{port}/"), &["127.0.0.1"]).await;
    side.run();
    side.fork().await;
    let (delivery, attempts) = side.delivery("dead_letter").await;
    assert_eq!(errors(&attempts), [(Some(410), "refused"), (Some(307), "refused"), (Some(307), "refused")]);
    assert_eq!((delivery.attempts, delivery.next_attempt_at), (3, None));
    assert!(delivery.last_error.unwrap().contains("redirects are not followed"));
    for _ in 0..3 {
        assert_eq!(arrived.recv().await.unwrap().head[0], "POST / HTTP/1.1");
    }
    assert!(arrived.try_recv().is_err(), "no redirect was followed");
    let webhook = side.store.db.get_webhook(&side.store.caller, side.webhook.id).await.unwrap();
    assert_eq!(webhook.last.unwrap().1, "dead_letter");
}

#[tokio::test]
async fn a_receiver_has_a_time_and_its_answer_a_size() {
    let (port, _arrived) = receiver(&[Answer::Silent, Answer::Endless]).await;
    let side = Side::new(format!("http://127.0.0.1:{port}/"), &["127.0.0.1"]).await;
    side.run();
    side.fork().await;
    let (_, attempts) = side.delivery("succeeded").await;
    assert_eq!(errors(&attempts), [(None, "timeout"), (Some(200), "")]);
    assert!(attempts[0].duration_ms >= 1900, "{attempts:?}");
}

#[tokio::test]
async fn nothing_is_sent_to_a_closed_address_by_name_or_number() {
    let (port, mut arrived) = receiver(&[Answer::Status(200)]).await;
    for host in ["hooks.test", "127.0.0.1", "localhost"] {
        let side = Side::new(format!("http://{host}:{port}/"), &["10.0.0.0/8"]).await;
        side.run();
        side.fork().await;
        let (delivery, attempts) = side.delivery("dead_letter").await;
        assert_eq!(errors(&attempts), [(None, "destination_not_allowed"); 3], "{host}");
        assert!(delivery.last_error.unwrap().contains("private_webhooks"));
    }
    assert!(arrived.try_recv().is_err());
}

#[tokio::test]
async fn a_delivery_of_a_sender_that_died_is_sent_when_its_lease_is_over() {
    let (port, mut arrived) = receiver(&[Answer::Status(200)]).await;
    let side = Side::new(format!("http://127.0.0.1:{port}/"), &["127.0.0.1"]).await;
    side.fork().await;
    let now = Timestamp::now();
    let taken =
        side.store.db.take_deliveries("other", now, now + SignedDuration::from_millis(700), 16, 4).await.unwrap();
    assert_eq!(taken.len(), 1);
    side.run();
    let (delivery, attempts) = side.delivery("succeeded").await;
    assert_eq!((delivery.attempts, attempts.len()), (1, 1));
    assert!(attempts[0].at >= now + SignedDuration::from_millis(690), "{attempts:?}");
    arrived.recv().await.unwrap();
    // What the dead one would have recorded comes too late.
    let late = Attempt { id: Uuid::now_v7(), ..attempts[0].clone() };
    assert!(matches!(side.store.db.delivery_done(delivery.id, late, None).await, Err(DbError::Conflict { .. })));
}

#[tokio::test]
async fn a_slow_receiver_has_four_at_once_and_holds_up_no_other() {
    let (slow_port, mut slow) = receiver(&[Answer::Silent]).await;
    let (port, mut arrived) = receiver(&[Answer::Status(200)]).await;
    let mut side = Side::new(format!("http://127.0.0.1:{slow_port}/"), &["127.0.0.1"]).await;
    side.deliverer.sender = sender(&["127.0.0.1"], Duration::from_secs(30));
    for _ in 0..30 {
        side.fork().await;
    }
    side.run();
    for _ in 0..4 {
        slow.recv().await.unwrap();
    }
    assert!(slow.try_recv().is_err(), "four at once");
    let id = Uuid::now_v7();
    let sealed_secret = side.deliverer.seal.seal(&id.to_string(), b"x").unwrap();
    let url = format!("http://127.0.0.1:{port}/");
    let other = Webhook { id, url, sealed_secret, ..side.webhook.clone() };
    side.store.db.insert_webhook(other, 20).await.unwrap();
    side.fork().await;
    let came = tokio::time::timeout(Duration::from_secs(20), arrived.recv()).await;
    came.expect("before the slow ones have timed out").unwrap();
}

#[tokio::test]
async fn a_secret_that_does_not_open_is_told_to_its_owner() {
    let (port, mut arrived) = receiver(&[Answer::Status(200)]).await;
    let mut side = Side::new(format!("http://127.0.0.1:{port}/"), &["127.0.0.1"]).await;
    side.deliverer.seal = SealKey::parse(&SealKey::generate().unwrap()).unwrap();
    side.run();
    side.fork().await;
    let (delivery, attempts) = side.delivery("dead_letter").await;
    assert_eq!(errors(&attempts), [(None, "secret_unavailable"); 3]);
    assert!(delivery.last_error.unwrap().contains("set signing_secret again"));
    assert!(arrived.try_recv().is_err());
}

#[test]
fn waits_double_up_to_five_minutes() {
    for (number, longest) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (60, 300)] {
        let (wait, longest) = (PACE.wait(number), Duration::from_secs(longest));
        assert!(wait <= longest && wait >= longest / 4 * 3, "{number}: {wait:?}");
    }
}
