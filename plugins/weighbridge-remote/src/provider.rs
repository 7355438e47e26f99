//! The provider: finds servers and opens their models.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use weighbridge_core::{
    Backend, Egress, EmbedRequest, EngineInfo, Error, ErrorKind, ModelCard, ModelListing, ModelRef,
    OpenContext, Placement, Probe, Provider, ProviderInfo, RequestOption, Result, Secret, Weights,
};

use crate::address::{Address, Place};
use crate::backend::RemoteBackend;
use crate::batch;
use crate::failure::{Refusal, by_status};
use crate::governor::{Account, Gate};
use crate::http::{Call, Credentials, Http};
use crate::options::{Options, Timers};
use crate::runtime;
use crate::vendor::{Base, Facts, Vendor};
use crate::wire::{Listed, Wire};

const MAX_LISTING_BYTES: usize = 4 << 20;
/// A list of models in more parts than this is cut.
const MAX_PAGES: usize = 50;
/// How long a server at its usual port may take to list its models, before it counts as absent.
const USUAL_SERVER_WAIT: Duration = Duration::from_millis(500);

/// How long a server may take to tell of a model that is opened, before it is opened without.
const DETAILS_WAIT: Duration = Duration::from_secs(5);

/// Models behind the API of one vendor.
///
/// ```
/// use weighbridge_core::Provider;
/// use weighbridge_remote::{Remote, Vendor};
///
/// assert_eq!(Remote::new(Vendor::Anthropic).id(), "anthropic");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    vendor: Vendor,
}

impl Remote {
    /// The provider. Nothing is started or asked.
    pub fn new(vendor: Vendor) -> Self {
        Self { vendor }
    }
}

/// A server that may be spoken to.
struct Server {
    http: Arc<Http>,
    wire: Box<dyn Wire>,
    place: Place,
    key_name: Option<String>,
    account: Account,
}

/// Where a model is and what it is called there.
struct Target {
    address: Address,
    /// `None`: the only one that the server lists.
    model: Option<String>,
}

#[async_trait]
impl Provider for Remote {
    fn id(&self) -> &str {
        self.vendor.facts().id
    }

    fn describe(&self) -> ProviderInfo {
        let facts = self.vendor.facts();
        let mut info = ProviderInfo::new(facts.summary, facts.location_help)
            .with_option_schema(Options::schema(self.vendor));
        info.needs_egress = true;
        info
    }

    async fn probe(&self, model: &ModelRef, context: &OpenContext) -> Probe {
        match self.ask_whether_it_answers(model, context).await {
            Ok(()) => Probe::Yes,
            Err(error) => Probe::No { reason: error.to_string() },
        }
    }

    /// Lists the vendor's models, or those of the server at option `base_url` (`url` for
    /// `openai-compatible`, which lists nothing without it). A local server that does not answer
    /// at its usual port has none; a vendor that needs a key and has none is an error.
    async fn list(&self, context: &OpenContext) -> Result<Vec<ModelListing>> {
        let mut options = Options::read(self.vendor, &context.options)?;
        let egress = egress(context)?;
        let facts = self.vendor.facts();
        let (url, is_given) = match (&options.base_url, facts.base) {
            (Some(url), _) => (url.clone(), true),
            (None, Base::At(url)) => (url.to_owned(), false),
            (None, Base::Location | Base::Option) => return Ok(Vec::new()),
        };
        let looks_around = facts.is_local() && !is_given;
        if looks_around {
            options = hurried(&options, USUAL_SERVER_WAIT);
        }
        if !facts.is_local() && !is_given {
            // Not even the vendor's name is looked up where the network is not allowed.
            egress.permit(&url, false)?;
        }
        let server = self.connect(Address::parse(&url)?, &options, egress, context).await?;
        let models = match server.models().await {
            Ok(models) => models,
            // Whoever listens there and lists no models is somebody else.
            Err(_) if looks_around => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(models.iter().map(|listed| self.listing(listed, &url, &server, &options)).collect())
    }

    async fn open(&self, model: &ModelRef, context: &OpenContext) -> Result<Arc<dyn Backend>> {
        let options = Options::read(self.vendor, &context.options)?;
        let target = self.target(model, &options)?;
        let egress = egress(context)?;
        let server = self.connect(target.address.clone(), &options, egress, context).await?;
        let listed = match target.model {
            None => only_model(server.models().await?, server.http.address().authority())?,
            Some(id) if self.vendor.facts().is_local() => {
                let options = hurried(&options, DETAILS_WAIT);
                let server = self.connect(target.address, &options, egress, context).await?;
                server.describe(id, self.vendor == Vendor::Ollama).await?
            }
            Some(id) => Listed::new(id),
        };
        if let Some(host) = &listed.remote_host {
            // The server is here and the model is not: what is asked of it leaves this machine.
            egress.permit(host, false)?;
        }
        Ok(Arc::new(self.backend(&listed, server, &options)?))
    }
}

impl Remote {
    async fn ask_whether_it_answers(&self, model: &ModelRef, context: &OpenContext) -> Result<()> {
        let options = Options::read(self.vendor, &context.options)?;
        let target = self.target(model, &options)?;
        let server = self.connect(target.address, &options, egress(context)?, context).await?;
        match server.models().await {
            Ok(models) if target.model.is_none() => {
                only_model(models, server.http.address().authority()).map(drop)
            }
            // Not every server lists its models; one that is named may be there all the same.
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound && target.model.is_some() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads a model's name.
    fn target(&self, model: &ModelRef, options: &Options) -> Result<Target> {
        let bad = |why: String| Err(Error::new(ErrorKind::InvalidInput, why));
        let facts = self.vendor.facts();
        let Some(url) = self.base_url(options)? else {
            if model.revision.is_some() {
                return bad("a server's URL takes no `@`: neither a revision nor a user; name a \
                            key by the option `api_key_env`"
                    .to_owned());
            }
            let wanted = wanted_model(model, options)?;
            return Ok(Target { address: Address::parse(&model.location)?, model: wanted });
        };
        if let Some(part) = model.variant.as_deref().or(model.revision.as_deref()) {
            return bad(format!("`{}` names a model by its id alone; cut `{part}` off", facts.id));
        }
        if model.location.is_empty() {
            return bad(format!("name a model: {}:MODEL ({})", facts.id, facts.location_help));
        }
        Ok(Target { address: Address::parse(&url)?, model: Some(model.location.clone()) })
    }

    /// The base URL; `None` where the location names it.
    fn base_url(&self, options: &Options) -> Result<Option<String>> {
        let facts = self.vendor.facts();
        match (facts.base, &options.base_url) {
            (Base::Location, _) => Ok(None),
            (_, Some(url)) => Ok(Some(url.clone())),
            (Base::At(url), None) => Ok(Some(url.to_owned())),
            (Base::Option, None) => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("`{}` needs option `base_url`: {}", facts.id, facts.location_help),
            )),
        }
    }

    async fn connect(
        &self,
        address: Address,
        options: &Options,
        egress: &Egress,
        context: &OpenContext,
    ) -> Result<Server> {
        let facts = self.vendor.facts();
        let place = {
            let (address, egress, wait) = (address.clone(), egress.clone(), options.timers.connect);
            runtime::run(async move { address.locate(&egress, wait).await }).await?
        };
        let (key_name, key) = key(&facts, &address, options, context)?;
        let credentials =
            Credentials { key: key.as_ref(), key_header: facts.key_header, headers: facts.headers };
        let account = Account::new(address.origin().to_string(), key.as_ref());
        let http =
            Http::new(address, place.is_loopback, credentials, egress.clone(), options.timers)?;
        let wire = self.vendor.wire(options);
        Ok(Server { http: Arc::new(http), wire, place, key_name, account })
    }

    fn card(&self, listed: &Listed, server: &Server, options: &Options) -> ModelCard {
        let facts = self.vendor.facts();
        let placement = match &listed.remote_host {
            Some(host) => Placement::Network { host: host.clone() },
            None if server.place.is_loopback => {
                Placement::LocalServer { verified: options.is_verified }
            }
            None => Placement::Network { host: server.http.address().authority().to_owned() },
        };
        // Who holds the weights behind a server is not to be seen from here, unless it tells of
        // their file; a suite that knows says so.
        let weights = if listed.has_weights { Weights::Open } else { facts.weights };
        let mut card = ModelCard::new(&listed.id, facts.id, weights, placement);
        card.n_ctx = options.n_ctx.or(listed.n_ctx);
        card.n_params = listed.n_params;
        card.quantization.clone_from(&listed.quantization);
        card.license.clone_from(&listed.license);
        card.weights_sha256.clone_from(&listed.weights_sha256);
        card.engine = listed.engine.as_ref().map(|(name, build)| EngineInfo::new(name, build));
        card
    }

    fn listing(
        &self,
        listed: &Listed,
        url: &str,
        server: &Server,
        options: &Options,
    ) -> ModelListing {
        let card = self.card(listed, server, options);
        let facts = self.vendor.facts();
        let model = match facts.base {
            Base::Location => {
                let mut model = ModelRef::new(facts.id, url);
                model.variant = Some(listed.id.clone());
                model
            }
            Base::At(_) | Base::Option => ModelRef::new(facts.id, &listed.id),
        };
        ModelListing::new(model, card)
    }

    fn backend(&self, listed: &Listed, server: Server, options: &Options) -> Result<RemoteBackend> {
        let jobs = batch::of(self.vendor);
        let card = self.card(listed, &server, options);
        let mut capabilities = server.wire.capabilities(&card.id);
        capabilities.batch = jobs.is_some();
        let offered = &mut capabilities.options;
        if options.has_fixed_sampling {
            offered.retain(|o| !matches!(o, RequestOption::Temperature | RequestOption::TopP));
        }
        match options.takes_images.or(listed.takes_images) {
            Some(true) if !offered.contains(&RequestOption::ImageInput) => {
                offered.push(RequestOption::ImageInput);
            }
            Some(false) => offered.retain(|o| *o != RequestOption::ImageInput),
            _ => {}
        }
        // Of these two, what the model could do: what it was loaded with is not told.
        let is_served = !matches!(self.vendor, Vendor::Ollama | Vendor::LmStudio);
        capabilities.n_ctx = options.n_ctx.or(listed.n_ctx.filter(|_| is_served));
        capabilities.max_concurrency = Some(options.limits.max_concurrency);
        if server.wire.embed_call(&card.id, &EmbedRequest::default()).is_some() {
            let known = listed.n_dims.or_else(|| server.wire.embedding_size(&card.id));
            capabilities.embeddings = options.dimensions.or(known);
        }
        let gate = Gate::open(
            server.account.clone().of_model(&card.id),
            server.http.address().authority(),
            options.limits,
            options.timers.total,
        )?;
        Ok(RemoteBackend {
            card,
            capabilities,
            http: server.http,
            wire: server.wire,
            key_name: server.key_name,
            gate,
            jobs,
        })
    }
}

impl Server {
    /// The models that the server lists.
    async fn models(&self) -> Result<Vec<Listed>> {
        self.fetch_models().await.map_err(|error| self.http.redactor().clean(error))
    }

    /// What the server tells of one of its models.
    ///
    /// # Errors
    /// Only if it `must_tell`: nothing that it tells is needed of most.
    async fn describe(&self, id: String, must_tell: bool) -> Result<Listed> {
        let models = self.models().await.unwrap_or_default();
        let listed = models.into_iter().find(|listed| listed.id == id);
        let listed = listed.unwrap_or_else(|| Listed::new(id));
        self.add_details(listed, must_tell).await.map_err(|e| self.http.redactor().clean(e))
    }

    async fn add_details(&self, mut listed: Listed, must_tell: bool) -> Result<Listed> {
        let Some((route, body)) = self.wire.details_call(&listed.id) else { return Ok(listed) };
        let call = match body {
            Some(body) => Call::post(route, body.to_string().into_bytes()),
            None => Call::get(route),
        };
        match self.fetch(call).await {
            Ok(body) => {
                let answer = serde_json::from_slice(&body).unwrap_or_default();
                self.wire.add_details(&mut listed, &answer);
                Ok(listed)
            }
            Err(error) if must_tell => Err(error),
            Err(_) => Ok(listed),
        }
    }

    async fn fetch(&self, call: Call) -> Result<Vec<u8>> {
        let mut exchange = self.http.start(call)?;
        let head = exchange.head().await?;
        let body = exchange.body(MAX_LISTING_BYTES).await?;
        if head.is_success() {
            return Ok(body);
        }
        Err(match by_status(&self.http, &head, &body, self.key_name.as_deref()) {
            Refusal::Error(error) => error,
            Refusal::Filtered(code) => Error::new(ErrorKind::ServerError, code),
        })
    }

    async fn fetch_models(&self) -> Result<Vec<Listed>> {
        let mut models = Vec::new();
        let mut next = None;
        for _ in 0..MAX_PAGES {
            let body = self.fetch(Call::get(self.wire.models_route(next.as_deref()))).await?;
            let document: Option<Value> = serde_json::from_slice(&body).ok();
            let page = document.and_then(|document| self.wire.models(&document));
            let page = page.ok_or_else(|| self.lists_nothing(&body))?;
            models.extend(page.models);
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        Ok(models)
    }

    fn lists_nothing(&self, body: &[u8]) -> Error {
        let text = String::from_utf8_lossy(body);
        Error::new(
            ErrorKind::Transport,
            format!(
                "{} lists no models as this API does; check that the URL is the base of the API, \
                 which often ends in /v1",
                self.http.address().authority()
            ),
        )
        .with("body", self.http.redactor().excerpt(text.trim(), 400))
    }
}

fn wanted_model(model: &ModelRef, options: &Options) -> Result<Option<String>> {
    match (&model.variant, &options.model) {
        (Some(a), Some(b)) if a != b => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("the model is named twice, `#{a}` and option `model` = `{b}`; keep one"),
        )),
        (named, option) => Ok(named.clone().or_else(|| option.clone())),
    }
}

fn egress(context: &OpenContext) -> Result<&Egress> {
    context.egress.as_ref().ok_or_else(|| {
        Error::new(
            ErrorKind::EgressDenied,
            "this run is offline, so no server may be asked; allow egress in the suite, or use a \
             model in this process",
        )
    })
}

fn key(
    facts: &Facts,
    address: &Address,
    options: &Options,
    context: &OpenContext,
) -> Result<(Option<String>, Option<Secret>)> {
    let name = match options.api_key_env.as_deref() {
        Some("") => None,
        Some(name) => Some(name),
        // A vendor's key goes to the vendor; another address must be given its own by name.
        None if is_elsewhere(facts, address) => None,
        None => facts
            .key_env
            .or_else(|| (address.host() == "api.openai.com").then_some("OPENAI_API_KEY")),
    };
    let Some(name) = name else { return Ok((None, None)) };
    match context.secret(name).filter(|secret| !secret.expose().is_empty()) {
        Some(secret) => Ok((Some(name.to_owned()), Some(secret))),
        None => Err(Error::new(
            ErrorKind::Auth,
            format!(
                "no key for {}: {}; set it, or correct the option `api_key_env`",
                address.authority(),
                context.secrets.why_missing(name)
            ),
        )),
    }
}

/// The address is not the vendor's own.
fn is_elsewhere(facts: &Facts, address: &Address) -> bool {
    match facts.base {
        Base::At(url) => Address::parse(url).is_ok_and(|own| own.origin() != address.origin()),
        Base::Location | Base::Option => false,
    }
}

/// The same options with no time limit above `wait`.
fn hurried(options: &Options, wait: Duration) -> Options {
    let Timers { connect, first_byte, idle, total } = options.timers;
    let timers = Timers {
        connect: connect.min(wait),
        first_byte: first_byte.min(wait),
        idle: idle.min(wait),
        total: total.min(wait),
    };
    Options { timers, ..options.clone() }
}

fn only_model(mut models: Vec<Listed>, place: &str) -> Result<Listed> {
    if models.len() == 1 {
        return Ok(models.remove(0));
    }
    let listed = match models.len() {
        0 => "none".to_owned(),
        n => {
            let shown: Vec<_> = models.iter().take(20).map(|m| format!("`{}`", m.id)).collect();
            let more = if n > 20 { format!(" and {} more", n - 20) } else { String::new() };
            format!("{}{more}", shown.join(", "))
        }
    };
    Err(Error::new(
        ErrorKind::InvalidInput,
        format!("name the model at {place} behind `#` in the URL; it lists {listed}"),
    ))
}
