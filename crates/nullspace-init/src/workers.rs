//! Threads for operations. A few stay when they are idle: the first request after a restore then finds one waiting, which
//! under software emulation, where no code is warm after a restore, is quicker by some 10 ms than starting one.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};

/// Idle threads kept.
const KEPT: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

struct Pool {
    idle: usize,
    jobs: VecDeque<Job>,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: 0, jobs: VecDeque::new() });
static ARRIVED: Condvar = Condvar::new();

/// Runs `job` on a thread of its own, at once. A panic in it ends only the job.
pub(crate) fn run(job: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    // Every queued job has an idle thread on its way to it.
    if pool.jobs.len() < pool.idle {
        pool.jobs.push_back(Box::new(job));
        drop(pool);
        ARRIVED.notify_one();
        return Ok(());
    }
    drop(pool);
    std::thread::Builder::new().name("worker".into()).spawn(move || work(Box::new(job)))?;
    Ok(())
}

fn work(first: Job) {
    let mut job = first;
    loop {
        // The job's channel tells of the failure; there is nothing to add here.
        let _ = catch_unwind(AssertUnwindSafe(job));
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.idle >= KEPT {
            return;
        }
        pool.idle += 1;
        job = loop {
            match pool.jobs.pop_front() {
                Some(job) => break job,
                None => pool = ARRIVED.wait(pool).unwrap_or_else(PoisonError::into_inner),
            }
        };
        pool.idle -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_do_not_wait_for_each_other() {
        for _ in 0..50 {
            let (started, starts) = mpsc::channel();
            // Dropping the senders lets all jobs end together.
            let gates: Vec<_> = (0..3 * KEPT)
                .map(|_| {
                    let (gate, closed) = mpsc::channel::<()>();
                    let started = started.clone();
                    run(move || {
                        started.send(()).unwrap();
                        let _ = closed.recv();
                    })
                    .unwrap();
                    gate
                })
                .collect();
            for _ in &gates {
                starts.recv_timeout(Duration::from_secs(10)).unwrap();
            }
        }
    }

    #[test]
    fn a_panic_ends_its_job_only() {
        for _ in 0..3 * KEPT {
            run(|| panic!("as it is meant to")).unwrap();
        }
        let (done, end) = mpsc::channel();
        run(move || done.send(()).unwrap()).unwrap();
        end.recv_timeout(Duration::from_secs(10)).unwrap();
    }
}
