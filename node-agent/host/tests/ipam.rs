//! Leases: never given twice, whatever ends the process, and never given from what is reserved.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use node_agent_host::{Ipam, IpamError, PodCidr};

/// Set in the process that is to be killed: the directory in which it leases.
const VICTIM: &str = "FAIRLEAD_TEST_IPAM_DIRECTORY";

/// The test that starts itself again as that process.
const SELF: &str = "no_lease_that_was_given_is_lost_or_given_twice_when_the_process_is_killed";

fn cidrs(texts: &[&str]) -> Vec<PodCidr> {
    texts
        .iter()
        .map(|text| PodCidr::new(text.parse().unwrap()).unwrap())
        .collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn open(directory: &Path, ranges: &[&str]) -> Ipam {
    Ipam::open(directory, cidrs(ranges)).unwrap()
}

#[test]
fn a_pod_gets_one_address_of_each_family_and_the_same_ones_again() {
    let directory = tempfile::tempdir().unwrap();
    let ranges = ["10.244.1.0/24", "fd00:10:244:1::/64"];
    let ipam = open(directory.path(), &ranges);
    assert_eq!(
        ipam.allocate("a").unwrap(),
        ips(&["10.244.1.2", "fd00:10:244:1::2"])
    );
    assert_eq!(
        ipam.allocate("b").unwrap(),
        ips(&["10.244.1.3", "fd00:10:244:1::3"])
    );
    assert_eq!(
        ipam.allocate("a").unwrap(),
        ips(&["10.244.1.2", "fd00:10:244:1::2"])
    );
    drop(ipam);
    let ipam = open(directory.path(), &ranges);
    assert_eq!(
        ipam.addresses("b"),
        ips(&["10.244.1.3", "fd00:10:244:1::3"])
    );
    assert_eq!(
        ipam.allocate("c").unwrap(),
        ips(&["10.244.1.4", "fd00:10:244:1::4"])
    );
    assert_eq!(ipam.leases().len(), 6);
}

#[test]
fn a_released_address_rests_until_the_range_has_gone_round() {
    let directory = tempfile::tempdir().unwrap();
    let ipam = open(directory.path(), &["10.244.1.0/29"]);
    assert_eq!(ipam.allocate("a").unwrap(), ips(&["10.244.1.2"]));
    assert_eq!(ipam.release("a").unwrap(), ips(&["10.244.1.2"]));
    assert_eq!(ipam.release("a").unwrap(), ips(&[]));
    let given: Vec<IpAddr> = ["b", "c", "d", "e", "f"]
        .iter()
        .flat_map(|owner| ipam.allocate(owner).unwrap())
        .collect();
    assert_eq!(
        given,
        ips(&[
            "10.244.1.3",
            "10.244.1.4",
            "10.244.1.5",
            "10.244.1.6",
            "10.244.1.2"
        ])
    );
}

#[test]
fn a_full_range_is_named_and_leaves_no_half_lease() {
    let directory = tempfile::tempdir().unwrap();
    let ipam = open(directory.path(), &["fd00::/64", "10.244.1.0/30"]);
    ipam.allocate("a").unwrap();
    let error = ipam.allocate("b").unwrap_err();
    assert!(
        matches!(&error, IpamError::Exhausted { cidr, capacity: 1 } if cidr.to_string() == "10.244.1.0/30")
    );
    assert_eq!(ipam.leases().len(), 2);
    ipam.release("a").unwrap();
    assert_eq!(ipam.allocate("b").unwrap().len(), 2);
}

#[test]
fn leases_of_an_earlier_pod_cidr_stay_but_are_not_given_again() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path(), &["10.244.1.0/24"])
        .allocate("a")
        .unwrap();
    let ipam = open(directory.path(), &["10.244.9.0/24"]);
    assert_eq!(ipam.addresses("a"), ips(&[]));
    assert_eq!(ipam.allocate("a").unwrap(), ips(&["10.244.9.2"]));
    assert_eq!(
        ipam.release("a").unwrap(),
        ips(&["10.244.1.2", "10.244.9.2"])
    );
}

#[test]
fn a_file_that_is_no_lease_is_named_and_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in [("notes", "x"), ("10.244.1.7", "")] {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        let error = Ipam::open(directory.path(), cidrs(&["10.244.1.0/24"])).unwrap_err();
        assert!(
            matches!(&error, IpamError::NotALease { path: named } if *named == path),
            "{error}"
        );
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn an_owner_must_be_one_line_of_text() {
    let directory = tempfile::tempdir().unwrap();
    let ipam = open(directory.path(), &["10.244.1.0/24"]);
    for owner in ["", "a\nb"] {
        assert!(matches!(ipam.allocate(owner), Err(IpamError::Owner { .. })));
    }
    assert!(ipam.leases().is_empty());
}

#[test]
fn threads_that_lease_at_once_get_different_addresses() {
    let directory = tempfile::tempdir().unwrap();
    let ipam = open(directory.path(), &["10.244.1.0/24"]);
    let given: Vec<IpAddr> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let ipam = &ipam;
                scope.spawn(move || -> Vec<IpAddr> {
                    (0..20)
                        .flat_map(|pod| ipam.allocate(&format!("{worker}-{pod}")).unwrap())
                        .collect()
                })
            })
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(given.len(), 80);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 80);
}

/// The process that is killed: leases and releases for ever, and says what it was given once it has it.
fn lease_for_ever(directory: &Path) {
    let ipam = open(directory, &["10.244.0.0/16", "fd00::/64"]);
    let mut out = std::io::stdout();
    for round in std::process::id().. {
        let owner = format!("pod-{round}-{}", ipam.leases().len());
        for address in ipam.allocate(&owner).unwrap() {
            writeln!(out, "lease {address} {owner}").unwrap();
        }
        out.flush().unwrap();
    }
}

#[test]
fn no_lease_that_was_given_is_lost_or_given_twice_when_the_process_is_killed() {
    if let Ok(directory) = std::env::var(VICTIM) {
        return lease_for_ever(Path::new(&directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let mut given: BTreeMap<IpAddr, String> = BTreeMap::new();
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([SELF, "--exact", "--nocapture"])
            .env(VICTIM, directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let reader =
            thread::spawn(move || -> Vec<String> { lines.map_while(Result::ok).collect() });
        thread::sleep(Duration::from_millis(30 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap() {
            // The first line shares its line with the test runner's own words.
            let Some(lease) = line.find("lease ").map(|at| &line[at..]) else {
                continue;
            };
            let [_, address, owner] = lease.split(' ').collect::<Vec<_>>()[..] else {
                continue;
            };
            // The last line may be cut off, but only in the name of the owner.
            let Ok(address) = address.parse() else {
                continue;
            };
            let earlier = given.insert(address, owner.to_owned());
            assert_eq!(earlier, None, "{address} was given twice");
        }
        let ipam = open(directory.path(), &["10.244.0.0/16", "fd00::/64"]);
        let leases: BTreeMap<IpAddr, String> = ipam
            .leases()
            .into_iter()
            .map(|lease| (lease.address, lease.owner))
            .collect();
        for (address, owner) in &given {
            let found = leases
                .get(address)
                .unwrap_or_else(|| panic!("the lease of {address} is lost"));
            assert!(
                found.starts_with(owner.as_str()),
                "{address} is {found}'s and was given to {owner}"
            );
        }
    }
    assert!(
        given.len() > 12,
        "the process was killed before it leased anything: {given:?}"
    );
}
