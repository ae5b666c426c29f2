//! Clients of the Service `web` that connect all the time.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use tests_testkit::NetNs;

/// Between two connections, if nothing else is said.
const PACE: Duration = Duration::from_millis(20);
/// Far longer than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Clients that connect all the time.
#[derive(Debug)]
pub struct Clients {
    pace: Duration,
    stop: AtomicBool,
    connections: AtomicUsize,
    failures: AtomicUsize,
}

impl Default for Clients {
    fn default() -> Self {
        Self::paced(PACE)
    }
}

impl Clients {
    /// With `pace` between two connections.
    #[must_use]
    pub fn paced(pace: Duration) -> Self {
        Self {
            pace,
            stop: AtomicBool::default(),
            connections: AtomicUsize::default(),
            failures: AtomicUsize::default(),
        }
    }

    /// Connects from a namespace to a Service while `work` goes on.
    pub fn during(&self, from: &NetNs, service: SocketAddr, work: impl FnOnce()) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !self.stop.load(Ordering::Relaxed) {
                    let counter = match who_answers(from, service) {
                        Ok(_) => &self.connections,
                        Err(_) => &self.failures,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(self.pace);
                }
            });
            let _ending = Ending(&self.stop);
            work();
        });
    }

    /// Every connection was answered, and there were more than `at_least`.
    ///
    /// # Panics
    ///
    /// When that is not so.
    pub fn check(&self, at_least: usize) {
        let connections = self.connections.load(Ordering::Relaxed);
        let failures = self.failures.load(Ordering::Relaxed);
        println!("{connections} connections meanwhile, {failures} failed");
        assert!(connections > at_least && failures == 0);
    }
}

struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The name of the server that answers a new connection.
///
/// # Errors
///
/// When there is none, or none answers within three seconds.
pub fn who_answers(from: &NetNs, service: SocketAddr) -> Result<String> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&service, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"hello\n")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        match answer.split(' ').nth(1) {
            Some(name) => Ok(name.to_owned()),
            None => bail!("answered {answer:?}"),
        }
    })
}
