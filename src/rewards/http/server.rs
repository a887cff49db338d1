//! A server that judges pictures: asked several times at once, again after a while where it fails, and never believed where it
//! gives no score.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::{OnFailure, Settings};
use crate::io::http::{Client, Failure, FailureKind, quote};
use crate::rewards::{Absent, Score, Unavailable};
use crate::telemetry::warn;

/// The wait before the second try; it doubles with every further one, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is asked of a server: a body, and how its answer is read.
pub trait Question: Sync {
    /// The kind of its bodies.
    const CONTENT_TYPE: &'static str;

    /// The body that asks about pictures `first..first + count`.
    ///
    /// # Errors
    /// If a picture cannot be put into it.
    fn body(&self, first: usize, count: usize) -> Result<Vec<u8>>;

    /// The scores of `count` pictures in `answer`.
    ///
    /// # Errors
    /// In words that follow the server's address: what is missing or wrong.
    fn read(&self, answer: &[u8], count: usize) -> Result<Vec<Score>>;
}

/// A server with its address and what is known of it.
pub struct Server {
    settings: Settings,
    client: Client,
    /// Whether all tries of a request have found the server away: then one try is enough, until there is an answer again.
    is_away: AtomicBool,
}

impl Server {
    /// The server at the address of `settings`.
    pub fn new(settings: Settings, key: Option<String>) -> Self {
        let client = Client::new(&settings.url, Duration::from_secs_f64(settings.timeout), key);
        Self { settings, client, is_away: AtomicBool::new(false) }
    }

    /// Fails unless the server is there: what it answers to GET at `path`, or nothing if that is a failure whose status `will_do`.
    ///
    /// # Errors
    /// [`Unavailable`], which names the server and says why, once all tries have failed.
    pub fn check(&self, path: &str, will_do: impl Fn(u16) -> bool) -> Result<Option<Vec<u8>>> {
        let call = Call::new(self, path);
        let answer = call.patiently(|| {
            let reply = self.client.get(&call.url, &[])?;
            if !reply.status().is_success() && will_do(reply.status().as_u16()) {
                return Ok(None);
            }
            self.client.success(reply).map(Some)
        });
        answer.map_err(|failure| Unavailable(failure.what).into())
    }

    /// The scores of `count` pictures, asked for at `path` in requests of as equal a number as possible and at most `most`, as many
    /// as the settings allow at the same time. Their order is that of the pictures, whichever is answered first.
    ///
    /// # Errors
    /// [`Unavailable`] or [`Absent`], as the settings say, if some have no score after all tries.
    pub fn score<Q: Question>(&self, path: &str, count: usize, most: usize, question: &Q) -> Result<Vec<Score>> {
        let call = Call::new(self, path);
        let requests = parts(count, most.min(count.div_ceil(self.settings.concurrency)).max(1));
        let (next, answers) = (AtomicUsize::new(0), Mutex::new(vec![Answer::default(); requests.len()]));
        let work = || {
            // Nobody waits for the rest of what has failed.
            while !call.is_in_vain() {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(first, count)) = requests.get(at) else { return };
                let answer = call.answer(question, first, count);
                answers.lock().expect("nothing panics while holding it")[at] = answer;
            }
        };
        std::thread::scope(|scope| {
            // The thread that is here does its share.
            (1..self.settings.concurrency.min(requests.len())).for_each(|_| _ = scope.spawn(work));
            work();
        });
        self.judge(&requests, answers.into_inner().expect("nothing panicked while holding it"))
    }

    /// The scores in `answers` to `requests`, or what the settings say about those that are missing.
    fn judge(&self, requests: &[(usize, usize)], answers: Vec<Answer>) -> Result<Vec<Score>> {
        let (mut scores, mut failure) = (Vec::new(), None);
        for ((first, count), answer) in requests.iter().zip(answers) {
            scores.extend(answer.scores);
            scores.resize(first + count, None);
            failure = failure.or(answer.why);
        }
        match (failure, self.settings.on_failure) {
            (None, _) => Ok(scores.into_iter().map(|s| s.expect("every request was answered")).collect()),
            (Some(why), OnFailure::Abort) => Err(Unavailable(why).into()),
            (Some(why), OnFailure::SkipGroup) => Err(Absent { scores, why }.into()),
        }
    }
}

/// What came of a request: scores as far as there are any, and why the first that is missing is.
#[derive(Clone, Default)]
struct Answer {
    scores: Vec<Option<Score>>,
    why: Option<String>,
}

/// Requests to one address that belong together.
struct Call<'a> {
    server: &'a Server,
    url: String,
    /// Whether one of them has failed for good.
    has_failed: AtomicBool,
}

impl<'a> Call<'a> {
    fn new(server: &'a Server, path: &str) -> Self {
        let url = format!("{}{path}", server.settings.url.trim_end_matches('/'));
        Self { server, url, has_failed: AtomicBool::new(false) }
    }

    /// Whether the rest can be spared.
    fn is_in_vain(&self) -> bool {
        self.server.settings.on_failure == OnFailure::Abort && self.has_failed.load(Ordering::Relaxed)
    }

    /// What the server says of pictures `first..first + count`. Where it cannot judge all of them but is there, each is asked about
    /// by itself: one picture that it does not like is not to cost the others their scores.
    fn answer<Q: Question>(&self, question: &Q, first: usize, count: usize) -> Answer {
        let failure = match self.ask(question, first, count) {
            Ok(scores) => return Answer { scores: scores.into_iter().map(Some).collect(), why: None },
            Err(failure) => failure,
        };
        let mut answer = Answer { scores: Vec::new(), why: Some(failure.what) };
        let is_worth_it = self.server.settings.on_failure == OnFailure::SkipGroup && count > 1;
        if is_worth_it && failure.kind != FailureKind::Away {
            for picture in first..first + count {
                match self.ask(question, picture, 1) {
                    Ok(scores) => answer.scores.extend(scores.into_iter().map(Some)),
                    Err(failure) if failure.kind == FailureKind::Away => break,
                    Err(_) => answer.scores.push(None),
                }
            }
            if answer.scores.len() == count && answer.scores.iter().all(Option::is_some) {
                answer.why = None;
            }
        }
        answer
    }

    fn ask<Q: Question>(&self, question: &Q, first: usize, count: usize) -> Result<Vec<Score>, Failure> {
        let body = question
            .body(first, count)
            .map_err(|e| Failure { what: format!("{}: {e:#}", self.url), kind: FailureKind::Refused })?;
        let client = &self.server.client;
        self.patiently(|| {
            let answer = client.success(client.post(&self.url, Q::CONTENT_TYPE, &body)?)?;
            let scores = question.read(&answer, count).and_then(|scores| check(scores, count));
            scores.map_err(|e| {
                let quoted = quote(&answer);
                let of = if quoted.is_empty() { quoted } else { format!(": {quoted}") };
                Failure { what: format!("{e:#}{of}"), kind: FailureKind::Unusable }
            })
        })
    }

    /// What `try_once` comes to, tried again after longer and longer waits where that may help; the last failure, with the address, if
    /// it does not.
    fn patiently<T>(&self, mut try_once: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let (url, is_away) = (&self.url, &self.server.is_away);
        let retries = if is_away.load(Ordering::Relaxed) { 0 } else { self.server.settings.retries };
        let mut failures = 0;
        loop {
            let failure = match try_once() {
                Ok(answer) => {
                    is_away.store(false, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            failures += 1;
            if failure.kind == FailureKind::Refused || failures > retries || self.is_in_vain() {
                self.has_failed.store(true, Ordering::Relaxed);
                is_away.store(failure.kind.may_pass(), Ordering::Relaxed);
                let tries = if failures > 1 { format!(" ({failures} tries)") } else { String::new() };
                return Err(Failure { what: format!("{url}: {failure}{tries}"), kind: failure.kind });
            }
            // Who answers has no need of time.
            if failure.kind.may_pass() {
                if failures == 1 {
                    warn(&format!("{url}: {failure}; trying again, {retries} times at most"));
                }
                std::thread::sleep(FIRST_WAIT.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_WAIT));
            }
        }
    }
}

/// `scores`, if there are `count` and all are numbers.
///
/// # Errors
/// Says how many there are, or which is none.
pub fn check(scores: Vec<Score>, count: usize) -> Result<Vec<Score>> {
    if scores.len() != count {
        return Err(anyhow!("answered with {} scores for {count} pictures", scores.len()));
    }
    match scores.iter().position(|s| !s.value.is_finite()) {
        Some(at) => Err(anyhow!("answered with the score {} for picture {at}", scores[at].value)),
        None => Ok(scores),
    }
}

/// `count` in parts of at most `most`, as equal as possible, the larger ones first: where each begins, and how many there are.
fn parts(count: usize, most: usize) -> Vec<(usize, usize)> {
    let number = count.div_ceil(most);
    let size = |i: usize| count / number + usize::from(i < count % number);
    (0..number).scan(0, |first, i| Some((std::mem::replace(first, *first + size(i)), size(i)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_split_as_numpy_splits_them() {
        assert_eq!(parts(64, 64), [(0, 64)]);
        // numpy.array_split of 130 in ceil(130 / 64) parts.
        assert_eq!(parts(130, 64), [(0, 44), (44, 43), (87, 43)]);
        assert_eq!(parts(3, 1), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(parts(0, 4), []);
    }
}
