//! Parts of times and of durations, in UTC unless a zone of a fixed offset is given.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{Function, member, no_overload};
use crate::eval::{Result, failed};
use crate::value::Value;

pub const ALL: &[Function] = &[
    member("getFullYear", &[0, 1], |v| part(v, |t| t.year().into())),
    member("getMonth", &[0, 1], |v| {
        part(v, |t| i64::from(t.month()) - 1)
    }),
    member("getDate", &[0, 1], |v| part(v, |t| t.day().into())),
    member("getDayOfMonth", &[0, 1], |v| {
        part(v, |t| i64::from(t.day()) - 1)
    }),
    member("getDayOfYear", &[0, 1], |v| {
        part(v, |t| i64::from(t.day_of_year()) - 1)
    }),
    member("getDayOfWeek", &[0, 1], |v| {
        part(v, |t| t.weekday().to_sunday_zero_offset().into())
    }),
    member("getHours", &[0, 1], |v| span(v, 3600, |t| t.hour().into())),
    member("getMinutes", &[0, 1], |v| {
        span(v, 60, |t| t.minute().into())
    }),
    member("getSeconds", &[0, 1], |v| span(v, 1, |t| t.second().into())),
    member("getMilliseconds", &[0, 1], |v| match &v[0] {
        Value::Duration(span) => Ok(Value::Int(
            i64::try_from(span.as_millis()).unwrap_or(i64::MAX),
        )),
        _ => part(v, |t| t.millisecond().into()),
    }),
];

fn part(values: &[Value], f: fn(DateTime) -> i64) -> Result<Value> {
    let Value::Timestamp(time) = &values[0] else {
        return no_overload();
    };
    let zone = match values.get(1) {
        None => TimeZone::UTC,
        Some(Value::String(name)) if matches!(&**name, "UTC" | "Z") => TimeZone::UTC,
        Some(Value::String(name)) => match TimeZone::get(name) {
            Ok(zone) => zone,
            Err(_) => return failed(format!("unknown time zone {name}")),
        },
        Some(_) => return no_overload(),
    };
    Ok(Value::Int(f(zone.to_datetime(*time))))
}

fn span(values: &[Value], unit: i64, f: fn(DateTime) -> i64) -> Result<Value> {
    match &values[0] {
        Value::Duration(span) => Ok(Value::Int(span.as_secs() / unit)),
        _ => part(values, f),
    }
}
