//! HorizontalPodAutoscalers: stored as `autoscaling/v2`, shown as `autoscaling/v1` too.
//!
//! Follows `pkg/apis/autoscaling` of Kubernetes. What `v1` has no field for stands in the annotations that Kubernetes
//! uses for it, in the form of `v2`.

use serde_json::{Map, Value, json};

use super::template::not_negative;
use super::{Strategy, defaults};
use crate::errors::FieldError;
use crate::json::Json;
use crate::kinds::Conversion;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

pub const AUTOSCALER: Strategy = Strategy {
    default,
    prepare_create: |autoscaler| autoscaler.put_default("/status", json!({})),
    validate,
    required: true,
    ..Strategy::PLAIN
};

pub const AUTOSCALER_V1: Strategy = Strategy {
    default: |autoscaler| {
        autoscaler.put_default("/spec/minReplicas", 1);
        let metrics = "/metadata/annotations/autoscaling.alpha.kubernetes.io~1metrics";
        if !autoscaler.has(metrics) {
            autoscaler.put_default("/spec/targetCPUUtilizationPercentage", 80);
        }
    },
    ..AUTOSCALER
};

pub const AUTOSCALER_V1_CONVERSION: Conversion = Conversion {
    to_stored,
    from_stored,
};

fn default(autoscaler: &mut Value) {
    autoscaler.put_default("/spec/minReplicas", 1);
    if autoscaler.items("/spec/metrics").is_empty() {
        autoscaler.put("/spec/metrics", json!([cpu(80)]));
    }
    for (direction, policies, seconds) in [
        (
            "scaleUp",
            json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]),
            Some(0),
        ),
        (
            "scaleDown",
            json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]),
            None,
        ),
    ] {
        let rules = format!("/spec/behavior/{direction}");
        if !autoscaler.has("/spec/behavior")
            || (direction == "scaleDown" && !autoscaler.has(&rules))
        {
            continue;
        }
        defaults(
            autoscaler,
            [
                (&*format!("{rules}/selectPolicy"), json!("Max")),
                (&*format!("{rules}/policies"), policies),
            ],
        );
        if let Some(seconds) = seconds {
            autoscaler.put_default(&format!("{rules}/stabilizationWindowSeconds"), seconds);
        }
    }
}

fn validate(autoscaler: &Value, errors: &mut Vec<FieldError>) {
    let min = autoscaler.integer("/spec/minReplicas").unwrap_or(1);
    let max = autoscaler.integer("/spec/maxReplicas").unwrap_or(0);
    if min < 1 {
        errors.push(FieldError::invalid(
            "spec.minReplicas",
            min,
            "must be greater than or equal to 1",
        ));
    }
    if max == 0 {
        errors.push(FieldError::required(
            "spec.maxReplicas",
            "must be set and greater than 0",
        ));
    } else if max < 0 {
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            max,
            "must be greater than or equal to 1",
        ));
    }
    if max < min {
        errors.push(FieldError::invalid(
            "spec.maxReplicas",
            max,
            "must be greater than or equal to `minReplicas`",
        ));
    }
    not_negative(
        autoscaler,
        &["/spec/targetCPUUtilizationPercentage"],
        errors,
    );
}

fn cpu(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn is_cpu(metric: &Value) -> bool {
    metric.text("/type") == "Resource"
        && metric.text("/resource/name") == "cpu"
        && metric.has("/resource/target/averageUtilization")
}

fn annotate(object: &mut Value, key: &str, value: &Value) {
    if !object.has("/metadata/annotations") {
        object.put("/metadata/annotations", json!({}));
    }
    object["metadata"]["annotations"][key] = value.to_string().into();
}

/// Takes the annotation away and reads the JSON in it.
fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = object
        .pointer_mut("/metadata/annotations")?
        .as_object_mut()?;
    let text = annotations.remove(key)?;
    if annotations.is_empty() {
        object.take_at("/metadata/annotations");
    }
    serde_json::from_str(text.as_str()?).ok()
}

fn from_stored(object: &mut Value) {
    object.put("/apiVersion", "autoscaling/v1");
    if let Some(Value::Array(metrics)) = object.take_at("/spec/metrics") {
        let (cpu, others): (Vec<_>, Vec<_>) = metrics.into_iter().partition(is_cpu);
        if let Some(percent) = cpu
            .first()
            .and_then(|m| m.integer("/resource/target/averageUtilization"))
        {
            object.put("/spec/targetCPUUtilizationPercentage", percent);
        }
        if !others.is_empty() {
            annotate(object, METRICS, &Value::Array(others));
        }
    }
    for (pointer, key) in [
        ("/spec/behavior", BEHAVIOR),
        ("/status/currentMetrics", CURRENT),
        ("/status/conditions", CONDITIONS),
    ] {
        if let Some(value) = object.take_at(pointer) {
            let percent = value.integer("/0/resource/current/averageUtilization");
            if let (CURRENT, Some(percent)) = (key, percent) {
                object.put("/status/currentCPUUtilizationPercentage", percent);
            }
            annotate(object, key, &value);
        }
    }
    for field in ["currentReplicas", "desiredReplicas"] {
        object.put_default(&format!("/status/{field}"), 0);
    }
}

fn to_stored(object: &mut Value) {
    object.put("/apiVersion", "autoscaling/v2");
    let mut metrics = Vec::new();
    let percent = object.take_at("/spec/targetCPUUtilizationPercentage");
    metrics.extend(percent.and_then(|p| p.as_i64()).map(cpu));
    if let Some(Value::Array(others)) = take_annotation(object, METRICS) {
        metrics.extend(others);
    }
    if !metrics.is_empty() {
        object.put("/spec/metrics", metrics);
    }
    object.take_at("/status/currentCPUUtilizationPercentage");
    for (pointer, key) in [
        ("/spec/behavior", BEHAVIOR),
        ("/status/currentMetrics", CURRENT),
        ("/status/conditions", CONDITIONS),
    ] {
        if let Some(value) = take_annotation(object, key) {
            object.put(pointer, value);
        }
    }
    if object.get("status").is_some_and(Value::is_null) {
        object["status"] = Value::Object(Map::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_between_the_versions() {
        let stored = json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "a"}, "spec": {
            "maxReplicas": 3, "behavior": {"scaleDown": {"selectPolicy": "Disabled"}},
            "metrics": [cpu(50), {"type": "Resource", "resource": {"name": "memory"}}]},
            "status": {"currentReplicas": 1, "desiredReplicas": 2, "conditions": [{"type": "X"}]}});
        let mut shown = stored.clone();
        from_stored(&mut shown);
        assert_eq!(
            shown["spec"],
            json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50})
        );
        to_stored(&mut shown);
        assert_eq!(shown, stored);
    }
}
