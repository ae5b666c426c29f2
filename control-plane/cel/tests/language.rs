//! What expressions mean, by cases of the language's and of Kubernetes' specification.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use control_plane_cel::{Budget, Failure, Program, Value, Variable, from_json};
use serde_json::json;

fn schema() -> serde_json::Value {
    json!({"type": "object", "properties": {
        "replicas": {"type": "integer"},
        "share": {"type": "number"},
        "name": {"type": "string"},
        "until": {"type": "string", "format": "date-time"},
        "x-y.z": {"type": "string"},
        "namespace": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "ports": {"type": "array", "items": {"type": "object", "properties": {"port": {"type": "integer"}}}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }})
}

fn object() -> serde_json::Value {
    json!({
        "replicas": 3, "share": 1, "name": "web", "until": "2024-02-29T12:00:00Z",
        "x-y.z": "odd", "namespace": "here", "tags": ["a", "b"],
        "ports": [{"port": 80}, {"port": 443}], "labels": {"app": "web"}, "free": {"any": 1},
    })
}

fn run(source: &str, steps: u64) -> Result<Value, Failure> {
    let schema = schema();
    let variables = [Variable {
        name: "self",
        schema: &schema,
    }];
    let program = Program::compile(source, &variables)
        .map_err(|why| Failure::Failed(format!("compile: {why}")))?;
    program.run(
        &[("self", from_json(&object(), &schema))],
        &mut Budget::new(steps),
    )
}

#[test]
fn expressions_hold() {
    for source in [
        "self.replicas > 2 && self.share == 1.0 && self.name == 'web'",
        "self.ports.all(p, p.port > 0 && p.port < 65536)",
        "self.ports.exists(p, p.port == 443) && self.ports.exists_one(p, p.port == 80)",
        "self.tags.map(t, t + '!') == ['a!', 'b!'] && self.tags.filter(t, t != 'a').size() == 1",
        "self.ports.map(p, p.port).sum() == 523 && self.ports.map(p, p.port).max() == 443",
        "has(self.labels.app) && !has(self.labels.other) && 'app' in self.labels",
        "self.labels.all(key, key.startsWith('a') && self.labels[key].size() == 3)",
        "self.until > timestamp('2024-01-01T00:00:00Z') && self.until.getMonth() == 1 && self.until.getDate() == 29",
        "self.until - timestamp('2024-02-29T11:00:00Z') == duration('1h')",
        "self.x__dash__y__dot__z == 'odd' && self.__namespace__ == 'here'",
        "self.free.any == 1",
        "self.?labels.?none.orValue('else') == 'else' && self.labels[?'app'].hasValue()",
        "self.?labels.?app.optMap(v, v + '2').value() == 'web2'",
        "self.name.matches('^w.b$') && self.name.find('e.*') == 'eb' && 'a1b22'.findAll('[0-9]+') == ['1', '22']",
        "'a,b'.split(',') == ['a', 'b'] && ['x', 'y'].join('-') == 'x-y' && 'tacocat'.substring(4) == 'cat'",
        "'hello'.indexOf('l') == 2 && 'hello'.lastIndexOf('l') == 3 && 'Ab'.lowerAscii() == 'ab' && 'aa'.replace('a', 'b', 1) == 'ba'",
        "sets.contains([1, 2, 3], [2]) && sets.equivalent([1, 2], [2, 1]) && sets.intersects([1], [1, 2])",
        "quantity('1Gi').isGreaterThan(quantity('900Mi')) && quantity('500m').add(quantity('500m')).asInteger() == 1 && !isQuantity('x')",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('::ffff:1.2.3.4') && ip('127.0.0.1').isLoopback()",
        "cidr('10.0.0.0/8').containsIP('10.2.3.4') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && cidr('10.0.0.0/8').prefixLength() == 8",
        "url('https://example.com:80/a?b').getHost() == 'example.com:80' && url('https://e.com/x').getEscapedPath() == '/x' && !isURL('a b')",
        // One side that decides is enough.
        "true || self.free.nothing > 1",
        "!(self.free.nothing > 1 && false)",
        "[0, 1].exists(n, 2 / n == 2) && ![0, 1].all(n, 2 / n == 1)",
        "1 == 1.0 && 1u == 1 && !('1' == '2') && 7 / 2 == 3 && -7 % 3 == -1",
        "type(1) == int && string(1.5) == '1.5' && int('3') == 3 && size('äö') == 2",
        "[1, 2, 2].isSorted() && [1, 2].indexOf(2) == 1 && {'a': 1}.size() == 1",
    ] {
        match run(source, 100_000) {
            Ok(Value::Bool(true)) => {}
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn what_cannot_be_worked_out_says_why() {
    for (source, why) in [
        ("self.labels.none == ''", "no such key: none"),
        ("1 / 0 == 1", "division by zero"),
        ("self.tags[5] == ''", "index out of bounds: 5"),
        ("9223372036854775807 + 1 > 0", "integer overflow"),
        ("'a' + 1 == ''", "no such overload"),
        ("quantity('x').sign() == 0", "quantities must match"),
        ("'a'.matches('(')", "error parsing regexp"),
        (
            "optional.none().value() == 1",
            "optional.none() dereference",
        ),
    ] {
        let failure = run(source, 100_000).unwrap_err().to_string();
        assert!(failure.starts_with(why), "{source}: {failure}");
    }
}

#[test]
fn what_nobody_knows_is_refused_before_it_runs() {
    for (source, why) in [
        (
            "self.replica > 1",
            "ERROR: <input>:1:5: undefined field 'replica'",
        ),
        ("self.ports.all(p, p.prt > 0)", "undefined field 'prt'"),
        (
            "other > 1",
            "ERROR: <input>:1:1: undeclared reference to 'other'",
        ),
        ("self.name.shout()", "undeclared reference to 'shout'"),
        (
            "self.name.matches()",
            "found no matching overload for 'matches'",
        ),
        (
            "self.name.x == 1",
            "type 'string' does not support field selection",
        ),
        ("self.replicas >", "ERROR: <input>:1:1"),
        ("Some{a: 1}", "undeclared reference to 'Some'"),
        ("has(self)", "invalid argument to has() macro"),
        ("", "it is empty"),
    ] {
        let failure = run(source, 100).unwrap_err().to_string();
        assert!(
            failure.starts_with("compile: ") && failure.contains(why),
            "{source}: {failure}"
        );
    }
}

#[test]
fn what_is_too_deep_is_refused_and_never_overflows_a_stack() {
    let many = |text: &str, times: usize| text.repeat(times);
    for deep in [
        format!("{}1{}", many("(", 10_000), many(")", 10_000)),
        format!("{}1{}", many("(", 64), many(")", 64)),
        format!("{}1{}", many("[", 64), many("]", 64)),
        format!("{}1{}", many("{1: ", 64), many("}", 64)),
        format!("1{}", many("+1", 2_000)),
        format!("self{}", many(".free", 2_000)),
        format!("self.free{}", many("[1]", 5_000)),
        format!("true{}", many("&&true", 1_000)),
        format!("true{}", many("?true:false", 1_400)),
        format!("{}true", many("!", 2_000)),
        format!("{}true", many("! ", 1_999)),
        format!("{}1", many("- ", 1_999)),
        format!("1{}", many(" in [1]", 2_300)),
        format!("self.name{}", many(".trim()", 1_999)),
        format!("{}true{}", many("[1].all(a, ", 64), many(")", 64)),
        many("'", 16_000),
        many("(", 16_000),
    ] {
        // On a small stack, as a server's thread has it. Whether it is refused depends on its form; that it ends does not.
        let small = std::thread::Builder::new().stack_size(2 << 20);
        let ended = small
            .spawn(move || drop(run(&deep, 100_000)))
            .unwrap()
            .join();
        assert!(ended.is_ok());
    }
    let deep = format!("1{} > 0", many("+1", 200));
    let why = run(&deep, 100_000).unwrap_err().to_string();
    assert!(
        why.contains("more than 128 operations in each other"),
        "{why}"
    );
}

#[test]
fn nobody_keeps_the_server_busy() {
    let numbers = format!("[{}]", vec!["1"; 200].join(","));
    for source in [
        format!("{numbers}.all(a, {numbers}.all(b, {numbers}.all(c, {numbers}.all(d, a + b + c + d > 0))))"),
        format!("{numbers}.map(a, {numbers}.map(b, {numbers}.map(c, a))).size() > 0"),
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.matches('((((a{0,100}){0,100}){0,100}){0,100})')".to_owned(),
        "['x'].map(a, a.replace('', 'xxxxxxxxxxxxxxxxxxxx').replace('', 'xxxxxxxxxxxxxxxxxxxxx').replace('', 'xxxxxxxxxxxxxxxxxxx').replace('', 'xxxxxxxxxxxxxxxxxxx').replace('', 'xxxxxxxxxxxxx').replace('', 'xxxxxxxxxxxxxxxxxxxxx')).size() > 1".to_owned(),
    ] {
        let began = Instant::now();
        let failure = run(&source, 1_000_000).unwrap_err();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert!(!failure.to_string().starts_with("compile"), "{failure}");
    }
    assert_eq!(
        run("[1, 2, 3].all(a, a > 0)", 10).unwrap_err(),
        Failure::Budget
    );
}
