//! The agent's own proof that the programs' outer checksums are right, in the real kernel: it holds, and a wrong one is
//! found.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use node_agent_maps::Trial;
use node_agent_overlay::{Mode, Overlay, OverlayOptions, VtepMac, proof_frames, prove};
use tests_testkit::{is_root, skip};

/// A node whose underlay has both families or IPv6 alone.
fn overlay(over_ipv6: bool) -> Overlay {
    let options = OverlayOptions {
        node_name: "n1".to_owned(),
        mode: Mode::Vxlan,
        direct_routing: false,
        underlay_v4: (!over_ipv6).then_some([192, 0, 2, 1].into()),
        underlay_v6: Some("2001:db8::1".parse().unwrap()),
        on_link: vec![],
        uplink_mtu: 1500,
        port: 8472,
        vni: 1,
        mac: VtepMac([2, 0, 0, 0, 0, 1]),
    };
    Overlay::new(options).unwrap()
}

#[test]
fn right_checksums_are_found_right_and_wrong_ones_wrong_over_both_underlays() {
    if !is_root() {
        return skip("needs root");
    }
    for over_ipv6 in [false, true] {
        let (config, mut peer) = overlay(over_ipv6).proof_peer();
        let trial = Trial::new(&config, &peer).unwrap();
        let frames = proof_frames();
        assert_eq!(frames.len(), 24);
        let sent = frames
            .iter()
            .map(|frame| trial.sent(frame).unwrap().unwrap());
        let sent: Vec<Vec<u8>> = sent.collect();
        for (sent, frame) in sent.iter().zip(&frames) {
            assert!(
                sent.ends_with(&frame[34..]),
                "what is inside goes as it was"
            );
            assert_eq!(prove(sent, &peer), Ok(()));
            for at in [54, sent.len() - 1] {
                let mut hurt = sent.clone();
                hurt[at] ^= 1;
                let fault = prove(&hurt, &peer).unwrap_err();
                assert!(fault.contains("the bytes ask for"), "{fault}");
            }
            prove(&sent[..30], &peer).unwrap_err();
        }
        // A sum that starts from a wrong number, and none at all.
        for spoilt in [peer.checksum_sum + 1, 0] {
            peer.checksum_sum = spoilt;
            let trial = Trial::new(&config, &peer).unwrap();
            for frame in &frames {
                prove(&trial.sent(frame).unwrap().unwrap(), &peer).unwrap_err();
            }
        }
    }
}
