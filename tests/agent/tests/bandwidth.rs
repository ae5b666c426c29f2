//! What a pod may receive and send, whoever is at the other end, before and after the agent was killed; pods beside it
//! are not slowed down.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use tests_agent::{Agent, Api, Pod, eventually, without_root};
use tests_testkit::{NetNs, Underlay};

/// In bits a second.
const INGRESS: u64 = 24_000_000;
const EGRESS: u64 = 12_000_000;
/// What the bucket holds passes at once, and TCP finds its pace.
const WARM_UP: Duration = Duration::from_millis(600);
const MEASURED: Duration = Duration::from_millis(1500);

fn node(underlay: &Underlay, api: &Api, number: u8) -> Agent {
    let cidrs = [
        format!("10.244.{number}.0/24"),
        format!("fd00:10:244:{number}::/64"),
    ];
    Agent::node(underlay, api, number, &[&cidrs[0], &cidrs[1]], &[]).unwrap()
}

/// Bits of payload a second that arrive at an address of a pod, by TCP.
fn measure(from: &NetNs, to: &NetNs, address: IpAddr) -> Result<f64> {
    let listener = to.run(|| TcpListener::bind((address, 0)))?;
    let server = listener.local_addr()?;
    let mut client = from.run(|| TcpStream::connect_timeout(&server, Duration::from_secs(5)))?;
    let (mut taken, _) = listener.accept()?;
    let sending = thread::spawn(move || {
        let block = vec![7; 64 << 10];
        // The reader's end ends it.
        while client.write_all(&block).is_ok() {}
    });
    let mut block = vec![0; 256 << 10];
    let mut read_for = |time: Duration| -> Result<f64> {
        let begun = Instant::now();
        let mut bytes = 0;
        while begun.elapsed() < time {
            taken.set_read_timeout(Some(Duration::from_millis(50)))?;
            match taken.read(&mut block) {
                Ok(more) => bytes += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes as f64 * 8.0 / begun.elapsed().as_secs_f64())
    };
    read_for(WARM_UP)?;
    let rate = read_for(MEASURED)?;
    drop(taken);
    sending.join().expect("the sender does not panic");
    Ok(rate)
}

/// Headers count for the kernel and not here: a packet of 1,464 bytes has at most 1,398 of payload.
fn is_limited(what: &str, limit: u64, rate: f64) {
    let ratio = rate / limit as f64;
    println!("{what}: {:.1} Mbit/s, {ratio:.2} of the limit", rate / 1e6);
    assert!((0.85..=1.10).contains(&ratio), "{what}: {ratio:.2}");
}

#[test]
fn a_pod_receives_and_sends_what_its_limits_say_and_others_more() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let (mut one, two) = (node(&underlay, &api, 1), node(&underlay, &api, 2));
    let limits = json!({"runtimeConfig": {"bandwidth": {
        "ingressRate": INGRESS, "ingressBurst": u32::MAX, "egressRate": EGRESS, "egressBurst": 800_000,
    }}});
    let (limited, _) = one.attach("limited", &limits).unwrap();
    let (beside, remote) = (one.pod("beside").unwrap(), two.pod("remote").unwrap());
    eventually("the pods reach each other", || {
        limited.answers_pod(&remote)?;
        remote.answers_pod(&limited)?;
        beside.answers_pod(&limited)
    })
    .unwrap();
    let [v4, v6] = [0, 1];
    let receives = |what: &str, from: &NetNs, family: usize| {
        let rate = measure(from, &limited.netns, limited.ips[family]).unwrap();
        is_limited(what, INGRESS, rate);
    };
    let sends = |what: &str, to: &Pod, family: usize| {
        let rate = measure(&limited.netns, &to.netns, to.ips[family]).unwrap();
        is_limited(what, EGRESS, rate);
    };
    receives("from another node, IPv4", &remote.netns, v4);
    receives("from the pod beside it, IPv6", &beside.netns, v6);
    receives("from the node, IPv4", &one.machine().netns, v4);
    sends("to another node, IPv6", &remote, v6);
    sends("to the pod beside it, IPv4", &beside, v4);
    let free = measure(&remote.netns, &beside.netns, beside.ips[v4]).unwrap();
    println!("without a limit: {:.1} Mbit/s", free / 1e6);
    assert!(free > 4.0 * INGRESS as f64, "{free}");
    // What a fresh agent knows of it is what the kernel has.
    one.kill().unwrap();
    one.again().unwrap();
    one.wait_ready().unwrap();
    receives("after a restart, IPv6", &beside.netns, v6);
}
