//! Requests over HTTP and HTTPS: one exchange at a time, and in few words why there was no answer.

use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use ureq::config::{ConfigBuilder, RedirectAuthHeaders};
use ureq::http::{HeaderMap, Response, Uri};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body, Error, RequestBuilder};

type Config = ConfigBuilder<AgentScope>;

/// More bytes of a reply are not read, where a reply is held in memory.
const LONGEST_REPLY: u64 = 16 << 20;
/// Characters of a reply that an error quotes.
const QUOTED: usize = 200;

/// Why a server gave no answer that can be used, in words that follow its address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    /// What happened.
    pub what: String,
    /// What that means for asking again.
    pub kind: FailureKind,
}

/// What a failure means for asking again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// There is no answer: there may be one later.
    Away,
    /// The server says that it is not well: it may be later.
    Unwell,
    /// The server does not take the request: it will not later either.
    Refused,
    /// What the server answers cannot be used; another answer may be.
    Unusable,
}

impl FailureKind {
    /// Whether waiting may help.
    pub fn may_pass(self) -> bool {
        matches!(self, Self::Away | Self::Unwell)
    }
}

impl Failure {
    /// There is no answer.
    fn away(what: String) -> Self {
        Self { what, kind: FailureKind::Away }
    }
}

/// Makes requests; keeps connections. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    agent: Agent,
    timeout: Duration,
    key: Option<String>,
}

impl Client {
    /// For requests to `url` and those beside it, each of which may take `timeout` with its answer. `key` is sent as a bearer's,
    /// though not to another host that a reply leads to. A proxy is taken from the environment as other programs do, except for
    /// this machine itself.
    pub fn new(url: &str, timeout: Duration, key: Option<String>) -> Self {
        Self::with(url, timeout, key, |config| config.timeout_global(Some(timeout)))
    }

    /// As [`Client::new`], for long answers: `timeout` is for their beginning and for each piece.
    pub fn for_downloads(url: &str, timeout: Duration, key: Option<String>) -> Self {
        let timeout_of_each = |config: Config| {
            let config = config.timeout_connect(Some(timeout)).timeout_resolve(Some(timeout));
            config.timeout_recv_response(Some(timeout)).timeout_per_read(Some(timeout))
        };
        Self::with(url, timeout, key, timeout_of_each)
    }

    fn with(url: &str, timeout: Duration, key: Option<String>, limit: impl FnOnce(Config) -> Config) -> Self {
        let config =
            Agent::config_builder().http_status_as_error(false).redirect_auth_headers(RedirectAuthHeaders::SameHost);
        let mut config = limit(config.user_agent(concat!("engine/", env!("CARGO_PKG_VERSION"))));
        if is_this_machine(url) {
            config = config.proxy(None);
        }
        Self { agent: config.build().into(), timeout, key }
    }

    /// What `url` answers to GET, whatever its status.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response<Body>, Failure> {
        let request = headers.iter().fold(self.agent.get(url), |request, (name, value)| request.header(*name, *value));
        self.keyed(request).call().map_err(|e| self.failure(e))
    }

    /// What `url` answers to `body`, whatever its status.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn post(&self, url: &str, content_type: &str, body: &[u8]) -> Result<Response<Body>, Failure> {
        let request = self.agent.post(url).header("Content-Type", content_type);
        self.keyed(request).send(body).map_err(|e| self.failure(e))
    }

    fn keyed<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// The bytes of `reply`, if its status says that all is well.
    ///
    /// # Errors
    /// Says the status and, from the body, why; or that it ended early, took too long, or is too long.
    pub fn success(&self, mut reply: Response<Body>) -> Result<Vec<u8>, Failure> {
        let status = reply.status();
        let body = reply.body_mut().with_config().limit(LONGEST_REPLY).read_to_vec();
        if status.is_success() {
            return body.map_err(|e| self.failure(e));
        }
        let quote = body.ok().map(|body| reason(&body)).filter(|why| !why.is_empty());
        let why = quote.map(|why| format!(": {why}")).unwrap_or_default();
        let code = status.as_u16();
        let may_pass = code >= 500 || [408, 425, 429].contains(&code);
        let kind = if may_pass { FailureKind::Unwell } else { FailureKind::Refused };
        Err(Failure { what: format!("answered {status}{why}"), kind })
    }

    /// `error` in words.
    pub fn failure(&self, error: Error) -> Failure {
        let what = match error {
            Error::Timeout(_) => format!("no answer in {} s", self.timeout.as_secs_f64()),
            Error::HostNotFound => "no such host".to_string(),
            Error::BodyExceedsLimit(most) => format!("answered with more than {most} bytes"),
            Error::Io(e) => match e.kind() {
                ErrorKind::ConnectionRefused => "connection refused".to_string(),
                ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                    "the connection was closed before the answer was complete".to_string()
                }
                _ => e.to_string(),
            },
            Error::Protocol(e) => format!("answered what is not HTTP ({e})"),
            other => other.to_string(),
        };
        Failure::away(what)
    }
}

/// The value of header `name`, if there is one of plain text.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Reads what is left of `reply` in pieces.
pub fn reader(reply: Response<Body>) -> impl Read {
    reply.into_body().into_with_config().limit(u64::MAX).reader()
}

/// Fails unless `text` is an address that can be asked.
///
/// # Errors
/// Says what was expected.
pub fn check_url(text: &str) -> Result<()> {
    let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    match uri.as_ref().and_then(Uri::scheme_str) {
        Some("http" | "https") => Ok(()),
        _ => bail!("'{text}' is no address, expected such as http://127.0.0.1:8000"),
    }
}

/// Whether `url` is on this machine.
fn is_this_machine(url: &str) -> bool {
    let uri = url.parse::<Uri>();
    let host = uri.as_ref().ok().and_then(Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What the body of an error says: the message in its JSON, the last line of a traceback, or how it begins.
fn reason(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) {
        let of = |value: &serde_json::Value| value.as_str().map(str::to_string);
        let places = [&json["error"]["message"], &json["error"], &json["detail"], &json["message"]];
        if let Some(message) = places.into_iter().find_map(of) {
            return quote(message.as_bytes());
        }
    }
    match text.contains("Traceback (most recent call last)") {
        true => quote(text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().as_bytes()),
        false => quote(body),
    }
}

/// The beginning of `body` in one line and quotes; nothing if there is nothing.
pub fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(8 * QUOTED)]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let line: String = words.join(" ").chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    match line.char_indices().nth(QUOTED) {
        _ if line.is_empty() => line,
        Some((end, _)) => format!("'{}…'", &line[..end]),
        None => format!("'{line}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_servers_are_quoted_by_what_matters() {
        let cases: [(&[u8], &str); 7] = [
            (br#"{"error": {"message": "model 'x' does not exist", "code": 404}}"#, "'model 'x' does not exist'"),
            (br#"{"detail": "Not Found"}"#, "'Not Found'"),
            (br#"{"error": "out of memory"}"#, "'out of memory'"),
            (b"Traceback (most recent call last):\n  File \"a.py\"\nValueError: no image\n", "'ValueError: no image'"),
            (b"<h1>\n  502 Bad\x1b Gateway</h1>", "'<h1> 502 Bad\u{fffd} Gateway</h1>'"),
            (b" \n", ""),
            (b"\xff\x00", "'\u{fffd}\u{fffd}'"),
        ];
        for (body, want) in cases {
            assert_eq!(reason(body), want);
        }
        assert!(quote(&[b'a'; 10_000]).chars().count() == QUOTED + 3);
    }

    #[test]
    fn addresses_are_told_from_what_is_none() {
        for good in ["http://a", "https://a.b:1/v1", "http://[::1]:80"] {
            check_url(good).unwrap();
        }
        for bad in ["", "localhost:8000", "ftp://a", "http://", "http:///a", "a b"] {
            let e = check_url(bad).unwrap_err().to_string();
            assert_eq!(e, format!("'{bad}' is no address, expected such as http://127.0.0.1:8000"));
        }
        assert!(["http://localhost:1/", "http://127.0.0.1", "http://[::1]:80"].map(is_this_machine).iter().all(|x| *x));
        assert!(!["http://localhost.com", "https://10.0.0.1"].map(is_this_machine).iter().any(|x| *x));
    }
}
