//! Numbered packets between two pods, each of which is counted: who says that traffic never stopped must have looked.

use std::collections::BTreeMap;
use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use crate::Pod;

/// Between two packets, if nothing else is said.
const PACE: Duration = Duration::from_millis(2);
/// Packets wait here while a busy machine does not run the thread that takes them.
const BUFFER: usize = 8 << 20;
/// Readers look up this often whether the end has come.
const LOOK_UP: Duration = Duration::from_millis(100);
/// An answer that is not there after this will not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// One pod asks and the other answers, by each of its addresses, until this is dropped.
#[derive(Debug)]
pub struct Stream {
    lanes: Vec<Lane>,
    threads: Vec<JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

/// What one address was asked, and what came back.
#[derive(Clone, Debug)]
struct Lane {
    address: IpAddr,
    asked: Arc<AtomicU64>,
    answers: Arc<Mutex<Answers>>,
}

#[derive(Debug, Default)]
struct Answers {
    /// Every number below this has come back.
    complete: u64,
    /// How often each of the others did.
    beyond: BTreeMap<u64, u32>,
    twice: u64,
    last: Option<Instant>,
    longest_silence: Duration,
}

/// What [`Stream::settle`] found.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Questions, each of which was answered exactly once.
    pub packets: u64,
    /// The longest time without an answer.
    pub silence: Duration,
}

impl Stream {
    /// # Errors
    ///
    /// When sockets cannot be made.
    pub fn start(from: &Pod, to: &Pod) -> Result<Self> {
        Self::paced(from, to, PACE)
    }

    /// As [`Stream::start`], with `pace` between two packets.
    ///
    /// # Errors
    ///
    /// When sockets cannot be made.
    pub fn paced(from: &Pod, to: &Pod, pace: Duration) -> Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let (mut lanes, mut threads) = (Vec::new(), Vec::new());
        for address in to.ips.iter().copied() {
            let own = from.ips.iter().find(|ip| ip.is_ipv4() == address.is_ipv4());
            let own = *own.context("the pods have no family in common")?;
            let server = to.netns.run(|| socket(address))?;
            let client = from.netns.run(|| socket(own))?;
            client.connect(server.local_addr()?)?;
            let lane = Lane {
                address,
                asked: Arc::default(),
                answers: Arc::default(),
            };
            threads.push(spawn(&over, move || answer(&server)));
            let (reader, read) = (client.try_clone()?, lane.clone());
            threads.push(spawn(&over, move || read.take(&reader)));
            let asking = lane.clone();
            threads.push(spawn(&over, move || asking.ask(&client, pace)));
            lanes.push(lane);
        }
        Ok(Self {
            lanes,
            threads,
            over,
        })
    }

    /// Waits for the answers to everything that was asked so far.
    ///
    /// # Errors
    ///
    /// When a packet was lost or came twice, with how many.
    pub fn settle(&self) -> Result<Settled> {
        let mut settled = Settled {
            packets: 0,
            silence: Duration::ZERO,
        };
        for lane in &self.lanes {
            let asked = lane.asked.load(Ordering::Acquire);
            let begun = Instant::now();
            while lane.answers().complete < asked && begun.elapsed() < PATIENCE {
                thread::sleep(PACE);
            }
            let answers = lane.answers();
            if answers.complete < asked || answers.twice > 0 {
                let came = answers.beyond.range(..asked).count() as u64;
                bail!(
                    "of {asked} packets to {} and back {} were lost, the first of them number {}; {} came twice",
                    lane.address,
                    asked.saturating_sub(answers.complete + came),
                    answers.complete,
                    answers.twice
                );
            }
            settled.packets += asked;
            settled.silence = settled.silence.max(answers.longest_silence);
        }
        Ok(settled)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic in one of them was printed, and what it would have counted is missing.
            let _ = thread.join();
        }
    }
}

impl Lane {
    fn ask(&self, socket: &UdpSocket, pace: Duration) {
        let number = self.asked.load(Ordering::Relaxed);
        // A refusal of the kernel is a packet that was not answered; it is counted as one.
        let _ = socket.send(&number.to_be_bytes());
        self.asked.store(number + 1, Ordering::Release);
        thread::sleep(pace);
    }

    fn take(&self, socket: &UdpSocket) {
        let mut bytes = [0; 8];
        if !matches!(socket.recv(&mut bytes), Ok(8)) {
            return;
        }
        let number = u64::from_be_bytes(bytes);
        let mut answers = self.answers();
        let now = Instant::now();
        if let Some(last) = answers.last.replace(now) {
            answers.longest_silence = answers.longest_silence.max(now - last);
        }
        if number < answers.complete {
            answers.twice += 1;
            return;
        }
        let times = answers.beyond.entry(number).or_default();
        *times += 1;
        if *times > 1 {
            answers.twice += 1;
        }
        let mut next = answers.complete;
        while answers.beyond.remove(&next).is_some() {
            next += 1;
        }
        answers.complete = next;
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(socket: &UdpSocket) {
    let mut bytes = [0; 8];
    if let Ok((len, from)) = socket.recv_from(&mut bytes) {
        // What cannot be sent is missed by the one who asked.
        let _ = socket.send_to(&bytes[..len], from);
    }
}

fn socket(ip: IpAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((ip, 0)).with_context(|| format!("bind to {ip}"))?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
    socket.set_read_timeout(Some(LOOK_UP))?;
    Ok(socket)
}

fn spawn(over: &Arc<AtomicBool>, step: impl Fn() + Send + 'static) -> JoinHandle<()> {
    let over = over.clone();
    thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            step();
        }
    })
}
