//! LimitRanges and ResourceQuotas. Follows `ValidateLimitRange` and `ValidateResourceQuota` of Kubernetes.

use std::collections::BTreeSet;

use control_plane_quota::{Amounts, Quantity, amounts, list, usage::Resource};
use serde_json::{Value, json};

use super::Strategy;
use crate::errors::FieldError;
use crate::json::{Json, same};
use crate::validate;

pub const LIMIT_RANGE: Strategy = Strategy {
    default: |range| {
        for limit in range.items_mut("/spec/limits").into_iter().flatten() {
            if limit.text("/type") == "Container" {
                complete(limit);
            }
        }
    },
    validate: |range, errors| {
        let mut seen = BTreeSet::new();
        for (at, limit) in range.items("/spec/limits").iter().enumerate() {
            let path = format!("spec.limits[{at}]");
            let of = limit.text("/type");
            if !seen.insert(of) {
                errors.push(FieldError::duplicate(format!("{path}.type"), of));
            }
            validate_limit(limit, &path, errors);
        }
    },
    required: true,
    ..Strategy::PLAIN
};

pub const RESOURCE_QUOTA: Strategy = Strategy {
    prepare_create: |quota| quota.put("/status", json!({})),
    validate: |quota, errors| {
        for part in ["spec", "status"] {
            for list in ["hard", "used"] {
                validate_amounts(quota, part, list, errors);
            }
        }
        validate_scopes(quota, errors);
    },
    validate_update: |new, old, errors| {
        // What was counted by other scopes would have to be counted anew at once.
        if !same(&new["spec"]["scopes"], &old["spec"]["scopes"]) {
            let given = new["spec"]["scopes"].clone();
            errors.push(FieldError::invalid(
                "spec.scopes",
                given,
                "field is immutable",
            ));
        }
    },
    required: true,
    ..Strategy::PLAIN
};

/// What is not said follows from what is: the limit from the highest, the request from the limit, or from the lowest.
fn complete(limit: &mut Value) {
    let all = |limit: &Value, field: &str| amounts(limit.get(field));
    let mut limits = all(limit, "max");
    limits.extend(all(limit, "default"));
    let mut requests = all(limit, "min");
    requests.extend(limits.clone());
    requests.extend(all(limit, "defaultRequest"));
    for (field, amounts) in [("default", limits), ("defaultRequest", requests)] {
        if !amounts.is_empty() {
            limit[field] = list(&amounts);
        }
    }
}

fn validate_limit(limit: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let of = |field: &str| amounts(limit.get(field));
    let (min, max) = (of("min"), of("max"));
    let (default, request) = (of("default"), of("defaultRequest"));
    match limit.text("/type") {
        "Pod" => {
            for field in ["default", "defaultRequest"] {
                if limit
                    .object(&format!("/{field}"))
                    .is_some_and(|m| !m.is_empty())
                {
                    let why = "may not be specified when `type` is 'Pod'";
                    errors.push(FieldError::forbidden(format!("{path}.{field}"), why));
                }
            }
        }
        "PersistentVolumeClaim" if !min.contains_key("storage") && !max.contains_key("storage") => {
            errors.push(FieldError::required(
                format!("{path}.limits"),
                "either minimum or maximum storage value is required, but neither was provided",
            ));
        }
        _ => {}
    }
    // Which of the two amounts is shown is as Kubernetes has it.
    for (field, shown, low, high) in [
        ("min", &min, (&min, "min"), (&max, "max")),
        (
            "defaultRequest",
            &request,
            (&min, "min"),
            (&request, "default request"),
        ),
        (
            "defaultRequest",
            &request,
            (&request, "default request"),
            (&max, "max"),
        ),
        (
            "defaultRequest",
            &request,
            (&request, "default request"),
            (&default, "default limit"),
        ),
        ("default", &min, (&min, "min"), (&default, "default")),
        ("default", &max, (&default, "default"), (&max, "max")),
    ] {
        ordered(&format!("{path}.{field}"), shown, low, high, errors);
    }
    for (name, ratio) in of("maxLimitRequestRatio") {
        let path = format!("{path}.maxLimitRequestRatio[{name}]");
        let mut refuse = |why| {
            errors.push(FieldError::invalid(&*path, ratio.to_string(), why));
        };
        if ratio < Quantity::count(1) {
            refuse(format!("ratio {ratio} is less than 1"));
        }
        if let (Some(min), Some(max)) = (min.get(&name), max.get(&name)) {
            let most = max.as_f64() / min.as_f64();
            if ratio.as_f64() > most {
                refuse(format!("ratio {ratio} is greater than max/min = {most:.6}"));
            }
        }
    }
}

/// Says which of the low amounts are above the high ones.
fn ordered(
    path: &str,
    shown: &Amounts,
    (low, called): (&Amounts, &str),
    (high, than): (&Amounts, &str),
    errors: &mut Vec<FieldError>,
) {
    for (name, amount) in low {
        if let Some(most) = high.get(name).filter(|most| amount > most) {
            errors.push(FieldError::invalid(
                format!("{path}[{name}]"),
                shown.get(name).unwrap_or(amount).to_string(),
                format!("{called} value {amount} is greater than {than} value {most}"),
            ));
        }
    }
}

fn validate_amounts(quota: &Value, part: &str, list: &str, errors: &mut Vec<FieldError>) {
    let all = quota.object(&format!("/{part}/{list}"));
    for (name, value) in all.into_iter().flatten() {
        let path = format!("{part}.{list}[{name}]");
        if let Some(why) = name
            .contains('/')
            .then(|| validate::qualified_name(name))
            .flatten()
        {
            errors.push(FieldError::invalid(&*path, &**name, why));
        }
        if !name.contains('/') && Resource::of_amount(name).is_none() {
            let whys = [
                "must be a standard resource type or fully qualified",
                "must be a standard resource for quota",
            ];
            errors.extend(whys.map(|why| FieldError::invalid(&*path, &**name, why)));
        }
        let Some(amount) = Quantity::parse(value.as_str().unwrap_or_default()) else {
            continue;
        };
        if amount.is_negative() {
            let why = "must be greater than or equal to 0";
            errors.push(FieldError::invalid(&*path, value.clone(), why));
        } else if is_counted(name) && !amount.is_whole() {
            errors.push(FieldError::invalid(
                path,
                value.clone(),
                "must be an integer",
            ));
        }
    }
}

fn is_counted(name: &str) -> bool {
    let of = Resource::of_amount(name)
        .is_some_and(|of| !matches!(of.plural, "pods" | "persistentvolumeclaims"));
    of || name.starts_with("count/") || matches!(name, "pods" | "persistentvolumeclaims")
}

fn validate_scopes(quota: &Value, errors: &mut Vec<FieldError>) {
    const SCOPES: [&str; 7] = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    let scopes: Vec<&str> = quota
        .items("/spec/scopes")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.push(FieldError::invalid(
                "spec.scopes",
                quota["spec"]["scopes"].clone(),
                "unsupported scope",
            ));
        }
    }
    for (one, other) in [
        ("BestEffort", "NotBestEffort"),
        ("Terminating", "NotTerminating"),
    ] {
        if scopes.contains(&one) && scopes.contains(&other) {
            let given = quota["spec"]["scopes"].clone();
            errors.push(FieldError::invalid(
                "spec.scopes",
                given,
                "conflicting scopes",
            ));
        }
    }
    for (at, one) in quota
        .items("/spec/scopeSelector/matchExpressions")
        .iter()
        .enumerate()
    {
        let path = format!("spec.scopeSelector.matchExpressions[{at}]");
        validate::one_of(
            one,
            "/scopeName",
            format!("{path}.scopeName"),
            &SCOPES,
            errors,
        );
        let operators = ["DoesNotExist", "Exists", "In", "NotIn"];
        validate::one_of(
            one,
            "/operator",
            format!("{path}.operator"),
            &operators,
            errors,
        );
        let (listed, needs) = (
            one.items("/values"),
            matches!(one.text("/operator"), "In" | "NotIn"),
        );
        if needs == listed.is_empty() {
            let why = match needs {
                true => {
                    "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector"
                }
                false => {
                    "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector"
                }
            };
            errors.push(match needs {
                true => FieldError::required(format!("{path}.values"), why),
                false => FieldError::invalid(format!("{path}.values"), listed.to_vec(), why),
            });
        }
        if one.text("/scopeName") != "PriorityClass" && one.text("/operator") != "Exists" {
            let why = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                one["operator"].clone(),
                why,
            ));
        }
    }
}
