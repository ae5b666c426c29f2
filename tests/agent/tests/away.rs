//! What tells the nodes of Services and of each other is away, for as long as `FAIRLEAD_AWAY_SECONDS` says: traffic goes
//! on, and what changed meanwhile is caught up with.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tests_agent::{
    Agent, Api, Clients, Etcd, FlannelLease, Pod, Registry, Stream, WEB_PORT, WebServer,
    eventually, who_answers, without_root,
};
use tests_testkit::{Underlay, skip};

/// How long it is away if the environment does not say.
const SHORTLY: Duration = Duration::from_secs(5);
/// The longest pause between two tries: half a minute, and as much again at random.
const CEILING: Duration = Duration::from_secs(60);
/// Between two packets, and between two connections: an hour of them must cost a busy machine little.
const PACE: Duration = Duration::from_millis(20);
/// The subnet of a third node, which has no agent: it is but an entry in the registry.
const THIRD: &str = "10.64.200.0/24";

/// Two nodes. A client of the first talks to a pod of the second, by itself and as a Service.
struct Scene {
    agents: [Agent; 2],
    client: Pod,
    /// One on each node.
    webs: [(Pod, WebServer); 2],
    service: SocketAddr,
}

fn time_away() -> Duration {
    let Ok(text) = std::env::var("FAIRLEAD_AWAY_SECONDS") else {
        return SHORTLY;
    };
    let seconds = text.parse();
    Duration::from_secs(seconds.expect("FAIRLEAD_AWAY_SECONDS is a whole number of seconds"))
}

#[test]
fn an_api_server_that_is_away_costs_no_packet_no_peer_and_no_change() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let mut api = Api::start(&underlay).unwrap();
    let third = FlannelLease::of(&underlay.machine(200).unwrap());
    third.publish("n200", Registry::Nodes(&api)).unwrap();
    let agents = [1, 2].map(|number| {
        let v6 = format!("fd00:10:244:{number}::/64");
        let cidrs = [&format!("10.244.{number}.0/24"), v6.as_str()];
        Agent::node(&underlay, &api, number, &cidrs, &[]).unwrap()
    });
    let mut scene = Scene::new(&api, agents).unwrap();
    let came_back = scene.bear(&mut api, Api::stop, |api| {
        api.again().unwrap();
        api.delete_node("n200").unwrap();
    });
    scene.catches_up(&api, came_back);
}

#[test]
fn a_registry_in_etcd_that_is_away_costs_no_packet_no_peer_and_no_lease() {
    if without_root() {
        return;
    }
    let underlay = Underlay::new(1500).unwrap();
    let api = Api::start(&underlay).unwrap();
    let config =
        json!({"Network": "10.64.0.0/16", "SubnetMax": "10.64.99.0", "Backend": {"Type": "vxlan"}});
    let Some(mut etcd) = Etcd::start(&api, &config).unwrap() else {
        return skip("there is no etcd: install etcd-server");
    };
    let third = FlannelLease::of(&underlay.machine(200).unwrap());
    third.publish("n200", Registry::Etcd(&etcd)).unwrap();
    let endpoints = format!("--flannel-etcd-endpoints={}", etcd.url());
    let agents =
        [1, 2].map(|number| Agent::node(&underlay, &api, number, &[], &[&endpoints]).unwrap());
    let mut scene = Scene::new(&api, agents).unwrap();
    let leases = etcd.leases().unwrap();
    let bridge = underlay.netns();
    // The API server is not there either, and nobody says so.
    let leave = |etcd: &mut Etcd<'_>| {
        etcd.kill().unwrap();
        bridge.ip("link set port250 down").unwrap();
    };
    let came_back = scene.bear(&mut etcd, leave, |etcd| {
        bridge.ip("link set port250 up").unwrap();
        etcd.again().unwrap();
        assert_eq!(etcd.leases().unwrap(), leases);
        etcd.delete("/subnets/10.64.200.0-24").unwrap();
    });
    scene.catches_up(&api, came_back);
}

impl Scene {
    fn new(api: &Api, agents: [Agent; 2]) -> Result<Self> {
        let webs = [("web-0", &agents[1]), ("web-1", &agents[0])].map(|(name, agent)| {
            let pod = agent.pod(name)?;
            let server = WebServer::start(&pod.netns, WEB_PORT, name)?;
            Ok((pod, server))
        });
        let [web_0, web_1] = webs.map(Result::<_>::unwrap);
        let service = api.add_web_service()?;
        api.put_behind_web(&web_0.0, "n2")?;
        let scene = Self {
            client: agents[0].pod("client")?,
            agents,
            webs: [web_0, web_1],
            service,
        };
        eventually("the first connections", || {
            scene.webs[0].0.answers_pod(&scene.client)?;
            scene.answered_by("web-0")
        })?;
        for agent in &scene.agents {
            eventually("the third node's route", || third_is_routed(agent, true))?;
        }
        Ok(scene)
    }

    fn answered_by(&self, expected: &str) -> Result<()> {
        let name = who_answers(&self.client.netns, self.service)?;
        ensure!(name == expected, "{name} answers, and not {expected}");
        Ok(())
    }

    /// Nothing is lost while the registry is away, and the third node's route stays; answers since when it is back.
    fn bear<R>(
        &mut self,
        registry: &mut R,
        leave: impl FnOnce(&mut R),
        come_back: impl FnOnce(&mut R),
    ) -> Instant {
        let away = time_away();
        let stream = Stream::paced(&self.client, &self.webs[0].0, PACE).unwrap();
        let clients = Clients::paced(PACE);
        let [first, second] = &mut self.agents;
        clients.during(&self.client.netns, self.service, || {
            leave(registry);
            let begun = Instant::now();
            // One agent even starts while nobody can tell it anything, the other one gets a pod.
            first.kill().unwrap();
            first.again().unwrap();
            let late = second.pod("late").unwrap();
            late.answers_pod(&self.client).unwrap();
            std::thread::sleep(away.saturating_sub(begun.elapsed()));
            late.answers_pod(&self.client).unwrap();
            for agent in [&*first, &*second] {
                third_is_routed(agent, true).unwrap();
            }
        });
        let settled = stream.settle().unwrap();
        println!("away for {away:?}: none lost of {settled:?}");
        let expected = away.as_millis() / PACE.as_millis() / 4;
        clients.check(usize::try_from(expected).unwrap());
        come_back(registry);
        Instant::now()
    }

    /// Another pod behind the Service, and the third node gone.
    fn catches_up(&mut self, api: &Api, came_back: Instant) {
        // The link to it may have to find its way first.
        eventually("the API server takes changes", || {
            api.put_behind_web(&self.webs[1].0, "n1")
        })
        .unwrap();
        self.within("the change of the Service", came_back, |scene| {
            scene.answered_by("web-1")
        });
        self.within("the third node's end", came_back, |scene| {
            let mut agents = scene.agents.iter();
            agents.try_for_each(|agent| third_is_routed(agent, false))
        });
        self.agents[0].wait_ready().unwrap();
        self.webs[0].0.answers_pod(&self.client).unwrap();
    }

    fn within(&self, what: &str, came_back: Instant, ask: impl Fn(&Self) -> Result<()>) {
        let limit = CEILING + Duration::from_secs(5);
        while let Err(error) = ask(self) {
            assert!(came_back.elapsed() < limit, "{what}: {error:#}");
            std::thread::sleep(PACE);
        }
        println!("{what} arrived after {:?}", came_back.elapsed());
    }
}

fn third_is_routed(agent: &Agent, expected: bool) -> Result<()> {
    let routes = agent.ip("route show dev fairlead0")?;
    ensure!(routes.contains(THIRD) == expected, "{routes}");
    Ok(())
}
