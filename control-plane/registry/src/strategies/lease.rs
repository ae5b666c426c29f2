//! Leases: who holds something, and until when.

use super::Strategy;
use crate::errors::FieldError;
use crate::json::Json;

pub const LEASE: Strategy = Strategy {
    validate: |lease, errors| {
        if let Some(seconds) = lease.integer("/spec/leaseDurationSeconds")
            && seconds <= 0
        {
            errors.push(FieldError::invalid(
                "spec.leaseDurationSeconds",
                seconds,
                "must be greater than 0",
            ));
        }
        if let Some(count) = lease.integer("/spec/leaseTransitions")
            && count < 0
        {
            errors.push(FieldError::invalid(
                "spec.leaseTransitions",
                count,
                "must be greater than or equal to 0",
            ));
        }
    },
    ..Strategy::PLAIN
};
