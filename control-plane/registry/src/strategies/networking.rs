//! Ingresses and their classes. Follows `pkg/apis/networking` of Kubernetes.

use serde_json::{Value, json};

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;
use crate::validate::{self, one_of};

pub const INGRESS_CLASS: Strategy = Strategy {
    default: |class| {
        if class.has("/spec/parameters") {
            class.put_default("/spec/parameters/scope", "Cluster");
        }
    },
    validate_update: |new, old, errors| {
        super::template::immutable(new, old, &["/spec/controller"], errors);
    },
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

pub const INGRESS: Strategy = Strategy {
    prepare_create: |ingress| ingress.put("/status", json!({"loadBalancer": {}})),
    validate: validate_ingress,
    required: true,
    generation: true,
    ..Strategy::PLAIN
};

fn validate_ingress(ingress: &Value, errors: &mut Vec<FieldError>) {
    if ingress.items("/spec/rules").is_empty() && !ingress.has("/spec/defaultBackend") {
        errors.push(FieldError::invalid(
            "spec",
            ingress["spec"]["rules"].clone(),
            "either `defaultBackend` or `rules` must be specified",
        ));
    }
    let class = ingress.text("/spec/ingressClassName");
    if let (false, Some(why)) = (class.is_empty(), validate::subdomain(class)) {
        errors.push(FieldError::invalid("spec.ingressClassName", class, why));
    }
    if let Some(backend) = ingress.pointer("/spec/defaultBackend") {
        validate_backend(backend, "spec.defaultBackend", errors);
    }
    for (at, rule) in ingress.items("/spec/rules").iter().enumerate() {
        let path = format!("spec.rules[{at}]");
        let host = rule.text("/host");
        let name = host.strip_prefix("*.").unwrap_or(host);
        if let (false, Some(why)) = (host.is_empty(), validate::subdomain(name)) {
            errors.push(FieldError::invalid(format!("{path}.host"), host, why));
        }
        if rule.has("/http") && rule.items("/http/paths").is_empty() {
            errors.push(FieldError::required(format!("{path}.http.paths"), ""));
        }
        for (at, entry) in rule.items("/http/paths").iter().enumerate() {
            let path = format!("{path}.http.paths[{at}]");
            let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
            one_of(
                entry,
                "/pathType",
                format!("{path}.pathType"),
                &kinds,
                errors,
            );
            let way = entry.text("/path");
            let any = entry.text("/pathType") == "ImplementationSpecific" && way.is_empty();
            if !any && !way.starts_with('/') {
                errors.push(FieldError::invalid(
                    format!("{path}.path"),
                    way,
                    "must be an absolute path",
                ));
            }
            validate_backend(&entry["backend"], &format!("{path}.backend"), errors);
        }
    }
}

fn validate_backend(backend: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match (backend.has("/service"), backend.has("/resource")) {
        (true, true) => errors.push(FieldError::invalid(
            path,
            backend.clone(),
            "cannot set both resource and service backends",
        )),
        (false, false) if !backend.is_null() => errors.push(FieldError::required(
            path,
            "resource or service backend is required",
        )),
        (true, false) => {
            let (name, number) = (
                backend.text("/service/port/name"),
                backend.integer("/service/port/number").unwrap_or(0),
            );
            let path = format!("{path}.service.port");
            match (name.is_empty(), number) {
                (true, 0) => errors.push(FieldError::required(
                    path,
                    "port name or number is required",
                )),
                (false, 0) => {}
                (false, _) => errors.push(FieldError::invalid(
                    path,
                    backend["service"]["port"].clone(),
                    "cannot set both port name & port number",
                )),
                (true, number) => {
                    if let Some(why) = validate::port(number) {
                        errors.push(FieldError::invalid(format!("{path}.number"), number, why));
                    }
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_in_an_ingress_are_named() {
        let ingress = json!({"spec": {"rules": [{"host": "A.b", "http": {"paths": [
            {"path": "x", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {}}}}]}}]}});
        let mut errors = Vec::new();
        validate_ingress(&ingress, &mut errors);
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.rules[0].host",
                "spec.rules[0].http.paths[0].path",
                "spec.rules[0].http.paths[0].backend.service.port",
            ]
        );
        let mut errors = Vec::new();
        validate_ingress(&json!({"spec": {}}), &mut errors);
        assert_eq!(errors.len(), 1);
    }
}
