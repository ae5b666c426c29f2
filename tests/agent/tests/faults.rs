//! An API server in trouble: connections go on, changes are caught up with, and it is not asked to death.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tests_agent::{
    Agent, Api, Clients, Disturbance, Pod, Proxy, Seen, Trouble, WEB_PORT, WebServer, eventually,
    who_answers, without_root,
};
use tests_testkit::Underlay;

/// What agents list and watch.
const LISTED: [&str; 3] = [
    "/api/v1/services",
    "/apis/discovery.k8s.io/v1/endpointslices",
    "/api/v1/nodes",
];
/// The longest wait between two tries: half a minute, and as much again at random.
const CEILING: Duration = Duration::from_secs(60);
/// How long a server refuses.
const TROUBLE: Duration = Duration::from_secs(10);

/// A node whose agent asks the API server through the proxy, and a Service with one of two pods behind it.
struct Stage {
    agent: Agent,
    proxy: Proxy,
    client: Pod,
    pods: [(Pod, WebServer); 2],
    service: SocketAddr,
    api: Api,
    _underlay: Underlay,
}

#[test]
fn an_api_server_that_closes_cuts_garbles_and_expires_watches_is_followed_all_the_same() {
    if without_root() {
        return;
    }
    let stage = Stage::new().unwrap();
    let clients = Clients::default();
    clients.during(&stage.client.netns, stage.service, || {
        for (turn, disturbance) in (1..).zip([
            Disturbance::Close,
            Disturbance::Cut,
            Disturbance::Garble,
            Disturbance::Expire,
        ]) {
            stage.disturb(disturbance);
            let took = stage.follow(turn).unwrap();
            let seen = stage.proxy.take_seen();
            let lists = lists(&seen);
            println!("{disturbance:?}: the change arrived after {took:?}; lists: {lists:?}");
            // A watch that only ended goes on where it was.
            let again = matches!(disturbance, Disturbance::Garble | Disturbance::Expire);
            let most = if again { 2 } else { 0 };
            assert!(lists.values().all(|count| *count <= most), "{lists:?}");
            assert!(took < Duration::from_secs(10), "{took:?}");
        }
    });
    clients.check(100);
}

#[test]
fn a_busy_server_is_asked_again_when_it_said_and_a_failing_one_less_and_less() {
    if without_root() {
        return;
    }
    for (trouble, shortest) in [
        (refuse(429, Some(4)), Duration::from_secs(4)),
        (refuse(503, Some(3)), Duration::from_secs(3)),
        (refuse(500, None), Duration::from_millis(800)),
        (refuse(502, None), Duration::from_millis(800)),
        (Trouble::Garbage, Duration::from_millis(800)),
        (Trouble::ShortWatches, Duration::from_secs(1)),
    ] {
        let stage = Stage::new().unwrap();
        let clients = Clients::default();
        clients.during(&stage.client.netns, stage.service, || {
            bear(&stage, &trouble, shortest)
        });
        clients.check(100);
    }
}

/// Ten seconds of trouble, in which no kind is asked for again before `shortest`.
fn bear(stage: &Stage, trouble: &Trouble, shortest: Duration) {
    stage.watches();
    stage.proxy.trouble(trouble.clone());
    // All watches must be begun again, and lists too.
    stage.proxy.disturb(Disturbance::Expire);
    let _ = stage.proxy.take_seen();
    stage.publish(1).unwrap();
    std::thread::sleep(TROUBLE);
    let seen = stage.proxy.take_seen();
    stage.proxy.trouble(None);
    let begun = Instant::now();
    stage.arrived(1).unwrap();
    println!(
        "{trouble:?}: {} requests in {TROUBLE:?}; the change arrived {:?} after its end",
        seen.len(),
        begun.elapsed()
    );
    for path in LISTED {
        let gaps = gaps(&seen, path);
        assert!(!gaps.is_empty(), "{path} was given up");
        assert!(gaps.iter().all(|gap| *gap >= shortest), "{path}: {gaps:?}");
    }
    // Three kinds, the node's lease and its condition.
    assert!(seen.len() < 50, "{} requests", seen.len());
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_api_server_that_is_away_for_a_minute_is_found_again_by_itself() {
    if without_root() {
        return;
    }
    let mut stage = Stage::new().unwrap();
    let clients = Clients::default();
    let (client, service) = (&stage.client.netns, stage.service);
    let mut api = &mut stage.api;
    clients.during(client, service, || {
        api.stop();
        std::thread::sleep(Duration::from_secs(60));
        api.again().unwrap();
    });
    let begun = Instant::now();
    stage.follow(1).unwrap();
    println!(
        "the change arrived {:?} after the API server came back",
        begun.elapsed()
    );
    assert!(begun.elapsed() < CEILING + Duration::from_secs(5));
    clients.check(100);
    api = &mut stage.api;
    // Again, and shortly.
    api.stop();
    api.again().unwrap();
    stage.follow(2).unwrap();
}

#[test]
fn a_link_to_the_api_server_that_is_dead_without_a_word_is_given_up() {
    if without_root() {
        return;
    }
    let stage = Stage::new().unwrap();
    let clients = Clients::default();
    clients.during(&stage.client.netns, stage.service, || {
        let bridge = stage._underlay.netns();
        let port = format!("port{}", stage.proxy.machine().number);
        bridge.ip(&format!("link set {port} down")).unwrap();
        stage.publish(1).unwrap();
        std::thread::sleep(Duration::from_secs(45));
        bridge.ip(&format!("link set {port} up")).unwrap();
        let begun = Instant::now();
        stage.arrived(1).unwrap();
        println!(
            "the change arrived {:?} after the link came back",
            begun.elapsed()
        );
        assert!(begun.elapsed() < CEILING, "{:?}", begun.elapsed());
    });
    clients.check(100);
}

#[test]
fn fields_of_a_later_version_are_passed_over() {
    if without_root() {
        return;
    }
    let stage = Stage::new().unwrap();
    stage.proxy.trouble(Trouble::UnknownFields);
    // Lists and watches both.
    stage.disturb(Disturbance::Expire);
    stage.follow(1).unwrap();
    stage.follow(2).unwrap();
    let mut agent = stage.agent;
    agent.kill().unwrap();
    agent.again().unwrap();
    agent.wait_ready().unwrap();
}

impl Stage {
    fn new() -> Result<Self> {
        let underlay = Underlay::new(1500)?;
        let api = Api::start(&underlay)?;
        let proxy = Proxy::start(&underlay, &api)?;
        api.add_node("n1", &["10.244.1.0/24"], json!({}))?;
        let mut agent = Agent::start("n1", underlay.machine(1)?, &[&proxy.flag()])?;
        agent.wait_ready()?;
        let pod = |name: &str| -> Result<(Pod, WebServer)> {
            let pod = agent.pod(name)?;
            let server = WebServer::start(&pod.netns, WEB_PORT, name)?;
            Ok((pod, server))
        };
        let pods = [pod("web-0")?, pod("web-1")?];
        let client = agent.pod("client")?;
        let service = api.add_web_service()?;
        let stage = Self {
            agent,
            proxy,
            client,
            pods,
            service,
            api,
            _underlay: underlay,
        };
        stage.follow(0)?;
        Ok(stage)
    }

    /// Waits until all kinds are watched.
    fn watches(&self) {
        eventually("all watches", || {
            let open = self.proxy.watches();
            ensure!(open == LISTED.len(), "{open} watches are open");
            Ok(())
        })
        .unwrap();
    }

    /// Disturbs all watches, and forgets what was asked before.
    fn disturb(&self, disturbance: Disturbance) {
        self.watches();
        let _ = self.proxy.take_seen();
        self.proxy.disturb(disturbance);
    }

    /// Puts one of the two pods behind the Service, and answers how long it takes until clients reach it.
    fn follow(&self, turn: usize) -> Result<Duration> {
        let begun = Instant::now();
        self.publish(turn)?;
        self.arrived(turn)?;
        Ok(begun.elapsed())
    }

    fn publish(&self, turn: usize) -> Result<()> {
        self.api.put_behind_web(&self.pods[turn % 2].0, "n1")
    }

    fn arrived(&self, turn: usize) -> Result<()> {
        let expected = format!("web-{}", turn % 2);
        let ask = || {
            let name = who_answers(&self.client.netns, self.service)?;
            ensure!(name == expected, "{name} answers, and not {expected}");
            Ok(())
        };
        let arrived = eventually("the change", ask);
        arrived.with_context(|| self.agent.log())
    }
}

fn refuse(status: u16, retry_after: Option<u32>) -> Trouble {
    Trouble::Refuse {
        status,
        retry_after,
    }
}

/// How often each kind was listed.
fn lists(seen: &[Seen]) -> BTreeMap<&str, usize> {
    let mut lists = BTreeMap::new();
    for seen in seen
        .iter()
        .filter(|seen| !seen.is_watch() && LISTED.contains(&seen.path.as_str()))
    {
        *lists.entry(seen.path.as_str()).or_default() += 1;
    }
    lists
}

/// Between two requests of one kind, lists or watches.
fn gaps(seen: &[Seen], path: &str) -> Vec<Duration> {
    let of_path = |is_watch: bool| {
        let times = seen
            .iter()
            .filter(move |seen| seen.path == path && seen.is_watch() == is_watch);
        let times: Vec<Instant> = times.map(|seen| seen.at).collect();
        times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect::<Vec<_>>()
    };
    [of_path(false), of_path(true)].concat()
}
