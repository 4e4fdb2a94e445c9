//! How the API holds up: many clients poll and stream one build's log while other builds run.
//!
//! ```text
//!   bench_api URL IMAGE CLIENTS BUILDS          key in NULLSPACE_API_KEY
//!     half of the clients poll the build's status, half stream its log; every one must see each offset once, in order
//! ```
//! Prints `bench: status_p99_ms …` and `bench: log_lines_per_s …` (lines that reached clients, all clients together).

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use nullspace_api::CreateTemplateRequest;
use nullspace_client::{Client, Error};
use tokio::sync::Barrier;

/// Lines that the build that is watched says.
const LINES: u64 = 4_000;
/// Between two questions of a client that polls.
const PAUSE: Duration = Duration::from_millis(200);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url, image, clients, builds] = arguments.as_slice() else {
        return Err("usage: bench_api URL IMAGE CLIENTS BUILDS".into());
    };
    let (clients, builds): (usize, usize) = (clients.parse()?, builds.parse()?);
    let key = env::var("NULLSPACE_API_KEY")?;
    let client = Client::new(url, key.into())?;

    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done; sleep 1000000");
    let watched = client.start_build(&request(image, "watched", script)).await?.build_id;
    for index in 1..builds {
        // No two alike, or the second would take what the first has made.
        let start = format!("sleep {}", 1_000_000 + index);
        client.start_build(&request(image, &format!("other-{index}"), start)).await?;
    }
    let began = Instant::now();
    let together = Arc::new(Barrier::new(clients));
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..clients {
        let (client, watched, together) = (client.clone(), watched.clone(), Arc::clone(&together));
        tasks.spawn(async move {
            together.wait().await;
            if index % 2 == 0 { poll(&client, &watched).await } else { stream(&client, &watched).await }
        });
    }
    let (mut waits, mut lines) = (Vec::new(), 0_usize);
    while let Some(ended) = tasks.join_next().await {
        let seen = ended??;
        waits.extend(seen.waits);
        lines = lines.saturating_add(seen.lines);
    }
    let seconds = began.elapsed().as_secs_f64();
    waits.sort();
    let at = |share: usize| waits.get(waits.len() * share / 100).copied().unwrap_or_default().as_secs_f64() * 1e3;
    println!("bench: clients {clients}, builds {builds}, status_requests {}, seconds {seconds:.1}", waits.len());
    println!("bench: status_p50_ms {:.1}", at(50));
    println!("bench: status_p99_ms {:.1}", at(99));
    println!("bench: log_lines_per_s {:.0}", lines as f64 / seconds);
    Ok(())
}

fn request(image: &str, name: &str, start_cmd: String) -> CreateTemplateRequest {
    let config = nullspace_api::TemplateBuildConfig { memory_mib: Some(192), ..Default::default() };
    CreateTemplateRequest {
        name: Some(name.to_owned()),
        base_image: Some(image.to_owned()),
        start_cmd: Some(start_cmd),
        build_config: Some(config),
        ..Default::default()
    }
}

/// What one client saw.
#[derive(Default)]
struct Seen {
    waits: Vec<Duration>,
    lines: usize,
    next: u64,
}

impl Seen {
    fn entry(&mut self, offset: u64) -> Result<(), String> {
        if offset != self.next {
            return Err(format!("offset {offset} came where {} was to come", self.next));
        }
        self.next = self.next.saturating_add(1);
        self.lines = self.lines.saturating_add(1);
        Ok(())
    }
}

async fn poll(client: &Client, build: &str) -> Result<Seen, String> {
    let mut seen = Seen::default();
    loop {
        let asked = Instant::now();
        let snapshot = client.build_status(build, seen.next).await.map_err(|error: Error| error.to_string())?;
        seen.waits.push(asked.elapsed());
        for entry in &snapshot.entries {
            seen.entry(entry.offset)?;
        }
        if snapshot.build.status.is_terminal() && snapshot.entries.is_empty() {
            return Ok(seen);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn stream(client: &Client, build: &str) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let mut log = client.follow_build(build, 0);
    while let Some(entry) = log.next().await {
        seen.entry(entry.map_err(|error| error.to_string())?.offset)?;
    }
    Ok(seen)
}
