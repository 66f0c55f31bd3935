//! The URLs that people give, checked as Python's `urlsplit` reads them.

use std::net::Ipv6Addr;

use serde_json::Value;

use crate::utils::checks::{Checked, unusable};

/// The base URL of a registry, without the slash at its end.
pub fn registry_url(value: &Value) -> Checked<String> {
    let hint = "give a URL such as http://10.0.0.1:18000";
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return unusable(format!("not a URL, {hint}"));
    }
    let (scheme, rest) = match text.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => (String::new(), text),
    };
    let (netloc, tail) = match rest.strip_prefix("//") {
        Some(rest) => rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len())),
        None => ("", rest),
    };
    let Some((host, port)) = host_and_port(netloc) else {
        return unusable(format!("not a URL, {hint}"));
    };
    let may_have_port = matches!(scheme.as_str(), "http" | "https") && !host.is_empty();
    let port = if may_have_port { port } else { "" };
    let number = port
        .parse::<u16>()
        .ok()
        .filter(|_| port.bytes().all(|b| b.is_ascii_digit()));
    if !port.is_empty() && number.is_none() {
        return unusable(format!("not a URL, {hint}"));
    }
    let (before, fragment) = tail.split_once('#').unwrap_or((tail, ""));
    let query = before.split_once('?').map_or("", |(_, query)| query);
    if !may_have_port || number == Some(0) || !query.is_empty() || !fragment.is_empty() {
        return unusable(format!("not a URL of a registry, {hint}"));
    }
    if netloc.contains('@') {
        return unusable(format!(
            "holds credentials, which would be shown by /health; {hint}"
        ));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Host and port (without `:`) of the authority of a URL; None where the brackets make no sense.
fn host_and_port(netloc: &str) -> Option<(&str, &str)> {
    if netloc.contains('[') != netloc.contains(']') {
        return None;
    }
    if let Some((_, bracketed)) = netloc.split_once('[') {
        let inside = bracketed.split(']').next().unwrap_or_default();
        let address = inside.split('%').next().unwrap_or_default();
        if !inside.starts_with('v') && address.parse::<Ipv6Addr>().is_err() {
            return None;
        }
    }
    let at = netloc.rsplit_once('@').map_or(netloc, |(_, host)| host);
    Some(match at.split_once('[') {
        Some((_, bracketed)) => {
            let (host, rest) = bracketed.split_once(']').unwrap_or((bracketed, ""));
            (host, rest.split_once(':').map_or("", |(_, port)| port))
        }
        None => at.split_once(':').unwrap_or((at, "")),
    })
}
