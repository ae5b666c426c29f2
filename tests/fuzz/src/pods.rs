//! What container runtimes say to the CNI plugin, and whoever can open its socket to the agent.

use node_agent_cni::{Attachment, Environment, NetConf, Request};

use crate::{Target, texts};

pub const CNI_CONF: Target = Target {
    name: "cni_conf",
    run: |data| {
        if let Ok(conf) = NetConf::parse(data) {
            assert!(!conf.name.contains(':'), "a colon parts the owner's name");
        }
    },
    seeds: || {
        texts(&[
            r#"{"cniVersion":"1.1.0","name":"pods","type":"fairlead-cni","mtu":1400,"sysctl":{"net.ipv4.conf.IFNAME.arp_ignore":"2"},"dns":{"nameservers":["10.96.0.10"]}}"#,
            r#"{"cniVersion":"0.4.0","name":"pods","prevResult":{"ips":[{"address":"10.244.0.2/20"},{"address":"fd00::2/64"}]}}"#,
            r#"{"cniVersion":"1.1.0","name":"pods","cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}"#,
            r#"{"cniVersion":"1.0.0","name":"pods","runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"192.0.2.1"}],"bandwidth":{"ingressRate":1000000,"ingressBurst":80000,"egressRate":1000000,"egressBurst":80000}}}"#,
        ])
    },
};
pub const CNI_ENVIRONMENT: Target = Target {
    name: "cni_environment",
    run: environment,
    seeds: || {
        texts(&[
            "ADD\nc1\n/proc/1/ns/net\neth0\nIgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
            "VERSION",
        ])
    },
};
pub const CNI_REQUEST: Target = Target {
    name: "cni_request",
    run: |data| {
        if let Ok(request) = serde_json::from_slice::<Request>(data) {
            let text = serde_json::to_vec(&request).expect("what was read is written");
            let again: Request = serde_json::from_slice(&text).expect("what was written is read");
            assert_eq!(again, request);
        }
    },
    seeds: || {
        let attachment = Attachment {
            network: "pods".to_owned(),
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let requests = [
            Request::Add(attachment.clone(), Default::default()),
            Request::Del(attachment.clone()),
            Request::Check(attachment.clone(), vec![[10, 244, 0, 2].into()]),
            Request::Gc {
                network: "pods".to_owned(),
                valid: vec![attachment],
            },
            Request::Status,
        ];
        let write = |request| serde_json::to_vec(request).expect("strings and numbers serialize");
        requests.iter().map(write).collect()
    },
};

const VARIABLES: [&str; 5] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
];

/// A variable a line. Who owns an attachment is told from its name again.
fn environment(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    let variable = |name: &str| {
        let at = VARIABLES.iter().position(|variable| *variable == name)?;
        lines.get(at).map(|line| (*line).to_owned())
    };
    let Ok(environment) = Environment::read(&variable) else {
        return;
    };
    let attachment = Attachment {
        network: "pods".to_owned(),
        container_id: environment.container_id,
        ifname: environment.ifname,
    };
    if !attachment.container_id.is_empty() {
        assert_eq!(Attachment::of_owner(&attachment.owner()), Some(attachment));
    }
}
