//! Asking an engine over HTTP on its unix socket.
//!
//! One connection per question: engines are on this host, and a question to one that has just been restarted must not fail
//! because of a connection to the one before. Nothing of an answer is taken that is larger than was expected.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

pub(crate) use hyper::Method;

/// How long an engine may take for what it only has to look up.
const LOOK_UP: Duration = Duration::from_secs(30);
/// What is larger is no answer to anything that is asked here.
const AT_MOST: usize = 32 * 1024 * 1024;
/// How long to wait between tries while the engine's queue of connections is full.
const RETRY: Duration = Duration::from_millis(5);

/// A question to an engine that was not answered, or with a refusal.
#[derive(Debug, thiserror::Error)]
#[error("{request} to {}: {problem}", socket.display())]
#[non_exhaustive]
pub struct ApiError {
    /// The method and the path that were asked.
    pub request: String,
    /// Where the engine was asked.
    pub socket: PathBuf,
    /// What went wrong.
    pub problem: ApiProblem,
}

/// What went wrong with a question to an engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiProblem {
    /// There is no such socket: the engine does not run, or listens elsewhere.
    #[error("there is no such socket: the engine is not running, or listens elsewhere")]
    Absent,
    /// Nobody listens at the socket.
    #[error("nobody listens there: the engine has ended; start it again")]
    Refused,
    /// The socket may not be opened.
    #[error("permission denied: run as root, or as a member of the socket's group")]
    Denied,
    /// The socket cannot be connected to for another reason.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The answer did not come in time.
    #[error("no answer within {} seconds", .0.as_secs_f64())]
    TimedOut(Duration),
    /// What came is no HTTP, or ended in its middle.
    #[error("no complete HTTP answer: {0}")]
    Broken(String),
    /// The answer is larger than any that is expected.
    #[error("the answer is larger than {AT_MOST} bytes")]
    TooLarge,
    /// The answer is none that the engine's documentation has.
    #[error("the answer (status {status}) is not the JSON that was expected: {source}")]
    Unexpected {
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The engine refused, or failed.
    #[error("{message} (status {status})")]
    Status {
        /// The HTTP status.
        status: u16,
        /// In the engine's own words.
        message: String,
    },
}

impl ApiError {
    /// The HTTP status, if the engine refused or failed.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self.problem {
            ApiProblem::Status { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Whether there was no engine to ask.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self.problem, ApiProblem::Absent)
    }
}

/// An engine's socket.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

/// A question: what was not set is not sent.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: Method,
    target: String,
    has_query: bool,
    limit: Option<Duration>,
}

/// An engine's answer that is no refusal.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
    request: String,
    socket: PathBuf,
}

impl Request {
    /// `segments` make the path; each is escaped, so that none can be more than one.
    pub(crate) fn new(method: Method, segments: &[&str]) -> Self {
        let mut target = String::new();
        for segment in segments {
            target.push('/');
            escape(&mut target, segment);
        }
        Self {
            method,
            target,
            has_query: false,
            limit: Some(LOOK_UP),
        }
    }

    pub(crate) fn get(segments: &[&str]) -> Self {
        Self::new(Method::GET, segments)
    }

    pub(crate) fn post(segments: &[&str]) -> Self {
        Self::new(Method::POST, segments)
    }

    pub(crate) fn query(mut self, name: &str, value: &str) -> Self {
        self.target.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        escape(&mut self.target, name);
        self.target.push('=');
        escape(&mut self.target, value);
        self
    }

    /// How long the whole may take; `None` for what takes as long as it takes.
    pub(crate) fn limit(mut self, limit: Option<Duration>) -> Self {
        self.limit = limit;
        self
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target)
    }
}

/// Whatever has a meaning of its own in a URI is escaped.
fn escape(target: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                target.push(char::from(byte));
            }
            _ => *target += &format!("%{byte:02X}"),
        }
    }
}

impl Client {
    pub(crate) fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks, and waits for the whole answer. Dropping the future ends the connection; whether the engine then goes on with
    /// what it was asked is the engine's affair.
    pub(crate) async fn ask(&self, request: Request) -> Result<Response, ApiError> {
        let name = request.to_string();
        let limit = request.limit;
        tracing::debug!(request = %name, socket = %self.socket.display(), "asking an engine");
        let asked = self.exchange(request);
        let answered = match limit {
            Some(limit) => tokio::time::timeout(limit, asked)
                .await
                .unwrap_or(Err(ApiProblem::TimedOut(limit))),
            None => asked.await,
        };
        let answered = answered.and_then(|(status, body)| match status {
            // 304 is "already so": the caller's to judge.
            200..=299 | 304 => Ok((status, body)),
            _ => Err(ApiProblem::Status {
                status,
                message: message(&body),
            }),
        });
        match answered {
            Ok((status, body)) => Ok(Response {
                status,
                body,
                request: name,
                socket: self.socket.clone(),
            }),
            Err(problem) => Err(ApiError {
                request: name,
                socket: self.socket.clone(),
                problem,
            }),
        }
    }

    async fn exchange(&self, request: Request) -> Result<(u16, Bytes), ApiProblem> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let http = hyper::Request::builder()
            .method(request.method)
            .uri(request.target)
            // There is none, but HTTP wants one.
            .header(HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| ApiProblem::Broken(error.to_string()))?;
        let mut exchange = pin!(async move {
            let answer = sender.send_request(http).await.map_err(broken)?;
            let status = answer.status().as_u16();
            Ok((status, collect(answer.into_body()).await?))
        });
        let mut connection = pin!(connection);
        let mut is_open = true;
        loop {
            tokio::select! {
                answer = &mut exchange => return answer,
                // What has arrived is still to be read.
                _ = &mut connection, if is_open => is_open = false,
            }
        }
    }

    async fn connect(&self) -> Result<UnixStream, ApiProblem> {
        loop {
            let error = match UnixStream::connect(&self.socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            return Err(match error.kind() {
                io::ErrorKind::WouldBlock => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ApiProblem::Absent,
                io::ErrorKind::ConnectionRefused => ApiProblem::Refused,
                io::ErrorKind::PermissionDenied => ApiProblem::Denied,
                _ => ApiProblem::Connect(error),
            });
        }
    }
}

impl Response {
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|source| ApiError {
            request: self.request.clone(),
            socket: self.socket.clone(),
            problem: ApiProblem::Unexpected {
                status: self.status,
                source,
            },
        })
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ApiProblem> {
    match Limited::new(body, AT_MOST).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiProblem::TooLarge),
        Err(error) => Err(ApiProblem::Broken(in_words(&*error))),
    }
}

fn broken(error: hyper::Error) -> ApiProblem {
    ApiProblem::Broken(in_words(&error))
}

fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    super::error::in_words(error)
}

/// What an engine says of its refusal: Docker in `message`, Podman in `cause` and `message`, a proxy in plain text.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        // One line of several, as it goes into one.
        Ok(refusal) => refusal
            .message
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        Err(_) => {
            let text = String::from_utf8_lossy(body);
            match text.trim() {
                "" => "the engine gave no reason".to_owned(),
                text => text.chars().take(500).collect(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What came of asking somebody who answers with `answer`, and what was asked.
    async fn asked(answer: Vec<u8>, request: Request) -> (Result<Response, ApiError>, String) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let heard = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 4096];
            let count = stream.read(&mut heard).await.unwrap();
            // Whoever has had enough hangs up.
            let _ = stream.write_all(&answer).await;
            heard.truncate(count);
            String::from_utf8(heard).unwrap()
        });
        let answered = Client::new(&socket).ask(request).await;
        (answered, heard.await.unwrap())
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes()
    }

    fn problem(answered: Result<Response, ApiError>) -> ApiProblem {
        answered.unwrap_err().problem
    }

    #[tokio::test]
    async fn a_question_is_sent_whole_and_its_answer_read() {
        let request = Request::post(&["v1.24", "containers", "a/../b c", "start"])
            .query("checkpoint", "x&y=z")
            .query("checkpoint-dir", "/tmp/ä");
        let (answered, heard) = asked(http("200 OK", "[1,2]"), request).await;
        assert_eq!(answered.unwrap().json::<Vec<u8>>().unwrap(), [1, 2]);
        let start = "POST /v1.24/containers/a%2F..%2Fb%20c/start?checkpoint=x%26y%3Dz&checkpoint-dir=%2Ftmp%2F%C3%A4 HTTP/1.1\r\n";
        assert!(heard.starts_with(start), "{heard}");
    }

    #[tokio::test]
    async fn an_answer_that_ends_with_its_connection_is_whole() {
        let answer = b"HTTP/1.0 200 OK\r\n\r\n{}".to_vec();
        let (answered, _) = asked(answer, Request::get(&["x"])).await;
        assert_eq!(&*answered.unwrap().body, b"{}");
    }

    #[tokio::test]
    async fn refusals_are_in_the_engines_own_words() {
        let body = r#"{"message":"No such container: x\n"}"#;
        let (answered, _) = asked(http("404 Not Found", body), Request::get(&["x"])).await;
        let error = answered.unwrap_err();
        assert_eq!(error.status(), Some(404));
        assert!(
            error
                .to_string()
                .ends_with(": No such container: x (status 404)"),
            "{error}"
        );
        for (body, words) in [("", "the engine gave no reason"), ("<h1>", "<h1>")] {
            let (answered, _) = asked(http("502 Bad Gateway", body), Request::get(&["x"])).await;
            let expected = words;
            let ApiProblem::Status { message, .. } = problem(answered) else {
                panic!("no status");
            };
            assert_eq!(message, expected);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_told_from_a_refusal() {
        let get = || Request::get(&["x"]);
        for answer in [
            &b"SSH-2.0\r\n"[..],
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        ] {
            let (answered, _) = asked(answer.to_vec(), get()).await;
            let problem = problem(answered);
            assert!(matches!(problem, ApiProblem::Broken(_)), "{problem}");
        }
        let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", AT_MOST + 1);
        let mut large = large.into_bytes();
        large.resize(large.len() + AT_MOST + 1, b' ');
        let (answered, _) = asked(large, get()).await;
        assert!(matches!(problem(answered), ApiProblem::TooLarge));
        let (answered, _) = asked(http("200 OK", "<html>"), get()).await;
        let unexpected = answered.unwrap().json::<Vec<u8>>().unwrap_err().problem;
        assert!(matches!(
            unexpected,
            ApiProblem::Unexpected { status: 200, .. }
        ));
    }

    #[tokio::test]
    async fn nobody_there_nobody_listening_and_nobody_answering_are_three_things() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let client = Client::new(&socket);
        let get = || Request::get(&["x"]);
        let error = client.ask(get()).await.unwrap_err();
        assert!(error.is_absent(), "{error}");
        assert!(error.to_string().starts_with("GET /x to /"), "{error}");
        let listener = UnixListener::bind(&socket).unwrap();
        let limit = Duration::from_millis(50);
        let error = client.ask(get().limit(Some(limit))).await.unwrap_err();
        assert!(matches!(error.problem, ApiProblem::TimedOut(of) if of == limit));
        drop(listener);
        assert!(matches!(
            problem(client.ask(get()).await),
            ApiProblem::Refused
        ));
        std::fs::remove_file(&socket).unwrap();
        std::fs::write(&socket, "").unwrap();
        assert!(matches!(
            problem(client.ask(get()).await),
            ApiProblem::Refused
        ));
    }
}
