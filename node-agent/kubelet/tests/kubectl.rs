//! kubectl's way into pods: logs, exec, attach, cp, port-forward and proxy, through the real API server and kubelet.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod node;

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::Stdio,
    time::Duration,
};

use node::{
    TestNode,
    kubectl::{complaint, ok},
    on_a_node,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

/// A shell that does `script`.
fn shell(name: &str, script: &str) -> Value {
    json!({ "name": name, "image": "busybox:1", "command": ["sh", "-c", script] })
}

const WAIT: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

async fn run(node: &TestNode, name: &str, containers: Value) {
    let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": containers });
    node.create_pod(name, spec).await;
    node.wait_ready(name).await;
}

#[test]
fn logs_show_what_a_container_wrote() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let talk = format!("for i in $(seq 1 5); do echo line $i; done; echo oops >&2; {WAIT}");
        run(
            node,
            "two",
            json!([shell("a", &talk), shell("b", "echo from b; sleep 1000")]),
        )
        .await;
        let all = node.kubectl_ok(&["logs", "two", "-c", "a"]).await;
        let mut lines: Vec<&str> = all.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            ["line 1", "line 2", "line 3", "line 4", "line 5", "oops"]
        );
        assert_eq!(
            node.kubectl_ok(&["logs", "two", "-c", "b"]).await,
            "from b\n"
        );
        let tail = node
            .kubectl_ok(&["logs", "two", "-c", "a", "--tail=2"])
            .await;
        assert_eq!(tail.lines().count(), 2, "{tail}");
        assert_eq!(
            node.kubectl_ok(&["logs", "two", "-c", "a", "--tail=0"])
                .await,
            ""
        );
        let timed = node
            .kubectl_ok(&["logs", "two", "-c", "b", "--timestamps"])
            .await;
        let (time, text) = timed.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{timed}");
        assert_eq!(text, "from b\n");
        // Kubernetes' times have whole seconds, rounded down.
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
        let later = format!("--since-time={later}");
        assert_eq!(
            node.kubectl_ok(&["logs", "two", "-c", "b", &later]).await,
            ""
        );
        let recent = ["logs", "two", "-c", "b", "--since=1h"];
        assert_eq!(node.kubectl_ok(&recent).await, "from b\n");
        let cut = ["logs", "two", "-c", "b", "--limit-bytes=4"];
        assert_eq!(node.kubectl_ok(&cut).await, "from");
        let named = node
            .kubectl_ok(&["logs", "two", "--all-containers", "--prefix"])
            .await;
        assert!(named.contains("[pod/two/b] from b"), "{named}");
        let error = complaint(
            &node
                .kubectl(&["logs", "two", "-c", "b", "--previous"])
                .await,
        );
        let expected = r#"previous terminated container "b" in pod "two" not found"#;
        assert!(error.contains(expected), "{error}");
        let error = complaint(&node.kubectl(&["logs", "nobody"]).await);
        assert!(error.contains(r#"pods "nobody" not found"#), "{error}");
    });
}

#[test]
fn logs_can_be_followed_and_outlive_a_restart() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        // Ends when it is told to, and says so the next time.
        let script = "echo start; until [ -e /tmp/end ]; do sleep 0.1; done; echo end; exit 3";
        run(node, "talker", json!([shell("c", script)])).await;
        let mut command =
            tokio::process::Command::from(node.kubectl_command(&["logs", "-f", "talker"]));
        let mut follow = command.kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("start"));
        node.kubectl_ok(&["exec", "talker", "--", "touch", "/tmp/end"])
            .await;
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("end"));
        assert_eq!(
            lines.next_line().await.unwrap(),
            None,
            "followed beyond the container's end"
        );
        assert!(follow.wait().await.unwrap().success());
        node.wait_for("talker", "started again", 60, |status| {
            status["containerStatuses"][0]["restartCount"] == 1
                && status["containerStatuses"][0]["state"]["running"].is_object()
        })
        .await;
        assert_eq!(
            node.kubectl_ok(&["logs", "talker", "--previous"]).await,
            "start\nend\n"
        );
        assert_eq!(node.kubectl_ok(&["logs", "talker"]).await, "start\n");
    });
}

#[test]
fn logs_of_what_has_not_started_say_why() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let mut container = shell("c", WAIT);
        container["image"] = json!("not-there:1");
        container["imagePullPolicy"] = json!("Never");
        let spec = json!({ "containers": [container] });
        node.create_pod("waiting", spec).await;
        node.wait_for("waiting", "waiting", 60, |status| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull"
        })
        .await;
        let error = complaint(&node.kubectl(&["logs", "waiting"]).await);
        let expected = r#"container "c" in pod "waiting" is waiting to start: ErrImageNeverPull"#;
        assert!(error.contains(expected), "{error}");
    });
}

#[test]
fn commands_run_in_a_container_with_their_streams_and_exit_codes() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        run(node, "box", json!([shell("c", WAIT)])).await;
        let exec = async |words: &[&str]| {
            node.kubectl(&[&["exec", "box", "--"], words].concat())
                .await
        };
        let output = exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(output.stdout, b"out\n");
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error, "err\ncommand terminated with exit code 7\n");
        assert_eq!(ok(&["hostname"], exec(&["hostname"]).await), "box\n");
        // Standard input with its end, and bytes that are no text.
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let arguments = ["exec", "-i", "box", "--", "cat"];
        let echoed = node.kubectl_with(&arguments, bytes.clone()).await;
        assert!(
            echoed.status.success(),
            "{}",
            String::from_utf8_lossy(&echoed.stderr)
        );
        assert!(
            echoed.stdout == bytes,
            "{} bytes came back",
            echoed.stdout.len()
        );
        // A command that is not there.
        let output = exec(&["no-such-command"]).await;
        assert!(!output.status.success());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("no-such-command"), "{said}");
        // A command that closes its output runs to its end.
        let output = exec(&["sh", "-c", "exec >&- 2>&-; sleep 1; exit 5"]).await;
        assert_eq!(output.status.code(), Some(5));
        let error = complaint(
            &node
                .kubectl(&["exec", "box", "-c", "x", "--", "true"])
                .await,
        );
        assert!(
            error.contains("container x is not valid for pod box"),
            "{error}"
        );
    });
}

#[test]
fn a_terminal_has_the_size_of_the_users() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        run(node, "box", json!([shell("c", WAIT)])).await;
        // script(1) gives kubectl a terminal; what it prints comes back through two of them.
        let kubectl = node.kubectl_command(&["exec", "-it", "box", "--", "sh"]);
        let words = std::iter::once(kubectl.get_program()).chain(kubectl.get_args());
        let line: Vec<String> = words
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let line = format!("stty rows 33 cols 101; {}", line.join(" "));
        let mut command = tokio::process::Command::new("script");
        command
            .args(["-qec", &line, "/dev/null"])
            .env("HOME", node.path("home"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        use tokio::io::AsyncWriteExt;
        stdin
            .write_all(b"sleep 0.5; stty size; tty; exit 4\n")
            .await
            .unwrap();
        let mut said = String::new();
        let read = stdout.read_to_string(&mut said);
        tokio::time::timeout(Duration::from_secs(30), read)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(4), "{said}");
        assert!(said.contains("33 101"), "{said}");
        assert!(said.contains("/dev/pts/"), "{said}");
    });
}

#[test]
fn attach_is_connected_to_the_containers_own_program() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let mut container = shell("c", "while read word; do echo got $word; done; echo bye");
        container["stdin"] = json!(true);
        container["stdinOnce"] = json!(true);
        let spec = json!({ "restartPolicy": "Never", "containers": [container] });
        node.create_pod("reader", spec).await;
        node.wait_ready("reader").await;
        let arguments = ["attach", "-i", "-q", "reader"];
        let said = ok(
            &arguments,
            node.kubectl_with(&arguments, "one\ntwo\n").await,
        );
        assert_eq!(said, "got one\ngot two\nbye\n");
        node.wait_for("reader", "ended", 60, |status| {
            status["phase"] == "Succeeded"
        })
        .await;
    });
}

#[test]
fn files_are_copied_into_and_out_of_a_container() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        run(node, "box", json!([shell("c", WAIT)])).await;
        let here = node.path("here");
        fs::create_dir_all(here.join("sub")).unwrap();
        let bytes: Vec<u8> = (0..500_000u32).map(|i| (i * 7 % 253) as u8).collect();
        fs::write(here.join("sub/data"), &bytes).unwrap();
        let from = here.display().to_string();
        node.kubectl_ok(&["cp", &from, "box:/tmp/there"]).await;
        let size = node
            .kubectl_ok(&[
                "exec",
                "box",
                "--",
                "sh",
                "-c",
                "wc -c < /tmp/there/sub/data",
            ])
            .await;
        assert_eq!(size.trim(), "500000");
        let back = node.path("back").display().to_string();
        node.kubectl_ok(&["cp", "box:/tmp/there", &back]).await;
        assert!(fs::read(node.path("back/sub/data")).unwrap() == bytes);
    });
}

/// A port that nobody has.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn ports_are_forwarded_one_connection_after_another_and_many_at_once() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        // On the pod's loopback address only: no other way leads there.
        let serve = format!(
            "mkdir /www; head -c 400000 /dev/zero > /www/big; echo hello > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; {WAIT}"
        );
        run(node, "web", json!([shell("c", &serve)])).await;
        let local = free_port();
        let (ports, dead) = (format!("{local}:8080"), free_port());
        let mut command = tokio::process::Command::from(node.kubectl_command(&[
            "port-forward",
            "pod/web",
            &ports,
            &format!("{dead}:9"),
        ]));
        let mut forward = command.kill_on_drop(true).spawn().unwrap();
        let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
        let first = lines.next_line().await.unwrap().unwrap_or_default();
        assert!(
            first.contains(&format!("Forwarding from 127.0.0.1:{local} -> 8080")),
            "{first}"
        );
        let get =
            move |path: &'static str| tokio::task::spawn_blocking(move || get_at(local, path));
        for _ in 0..3 {
            assert!(get("/").await.unwrap().ends_with(b"hello\n"));
        }
        let many: Vec<_> = (0..16).map(|_| get("/big")).collect();
        for answer in many {
            let answer = answer.await.unwrap();
            assert!(answer.len() > 400_000, "only {} bytes came", answer.len());
        }
        // A port that nobody listens on is told of, and harms no other.
        let mut lines = BufReader::new(forward.stderr.take().unwrap()).lines();
        let refused = tokio::task::spawn_blocking(move || get_at(dead, "/"));
        let limit = Duration::from_secs(20);
        let complaint = tokio::time::timeout(limit, lines.next_line())
            .await
            .unwrap();
        let complaint = complaint.unwrap().unwrap_or_default();
        assert!(
            complaint.contains("error forwarding port 9 to pod web"),
            "{complaint}"
        );
        assert!(complaint.contains("refused"), "{complaint}");
        refused.await.unwrap();
        forward.kill().await.unwrap();
    });
}

/// A GET on a local port: everything that comes.
fn get_at(port: u16, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect((IpAddr::from([127, 0, 0, 1]), port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = Vec::new();
    // One that is refused may be reset.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn pods_and_nodes_answer_through_the_proxy() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        let serve = format!("mkdir /www; echo hello > /www/page; httpd -p 8080 -h /www; {WAIT}");
        run(node, "web", json!([shell("c", &serve)])).await;
        let raw = async |path: &str| node.kubectl(&["get", "--raw", path]).await;
        let page = raw("/api/v1/namespaces/default/pods/web:8080/proxy/page").await;
        assert_eq!(ok(&["pod proxy"], page), "hello\n");
        let error = complaint(&raw("/api/v1/namespaces/default/pods/web:8081/proxy/page").await);
        assert!(
            error.contains("error forwarding port 8081 to pod web"),
            "{error}"
        );
        let health = raw("/api/v1/nodes/node-1/proxy/healthz").await;
        assert_eq!(ok(&["node proxy"], health), "ok");
        let pods = ok(&["pods"], raw("/api/v1/nodes/node-1/proxy/pods").await);
        let pods: Value = serde_json::from_str(&pods).unwrap();
        assert_eq!(pods["kind"], "PodList");
        assert_eq!(pods["items"][0]["metadata"]["name"], "web");
        // There are no metrics yet, and top says so in its usual words.
        let error = complaint(&node.kubectl(&["top", "pods"]).await);
        assert!(error.contains("Metrics API not available"), "{error}");
    });
}

#[test]
fn nobody_but_the_api_server_is_answered_by_the_kubelet() {
    on_a_node(async |node| {
        node.start_kubelet().await;
        node::ip("addr add 192.0.2.1/32 dev lo");
        let ask = async |from: [u8; 4]| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((IpAddr::from(from), 0).into()).unwrap();
            let kubelet = (IpAddr::from([127, 0, 0, 1]), node::API_PORT);
            let mut stream = socket.connect(kubelet.into()).await.unwrap();
            use tokio::io::AsyncWriteExt;
            stream
                .write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
                .await
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(ask([127, 0, 0, 1]).await.contains(" 200 "));
        let refused = ask([192, 0, 2, 1]).await;
        assert!(refused.contains(" 403 "), "{refused}");
        assert!(refused.contains("answers its API server only"), "{refused}");
    });
}
