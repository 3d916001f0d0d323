import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { scrub } from "../../src/core/scrub.ts";

const megabyte = 2 ** 20;
const uuid = "88a6b1c2-1111-4222-8333-444455556666";

describe("takes out", () => {
  test.each([
    ["an OpenAI key", "key sk-abcdEFGH1234 is bad", "key [redacted] is bad"],
    ["a project key", "sk-proj-a1_b2-C3", "[redacted]"],
    ["a masked key", "sk-abc***wxyz", "[redacted]"],
    ["a masked project key", "sk-proj-********abcd", "[redacted]"],
    ["a key masked with dots", "(sk-...abcd)", "([redacted])"],
    ["a key masked with an ellipsis", "“sk-ab…wxyz”", "“[redacted]”"],
    ["a mask without a prefix", "Your api key: ****1234 is invalid", "Your api key: [redacted] is invalid"],
    ["a short mask", "Incorrect API key provided: xa***rt.", "Incorrect API key provided: [redacted]."],
    ["an Anthropic key", "x-api-key: sk-ant-api03-aB_c-dE", "x-api-key: [redacted]"],
    ["an OpenRouter key", "sk-or-v1-0123456789abcdef", "[redacted]"],
    ["a Groq key", "gsk_abcdefgh", "[redacted]"],
    ["an xAI key", "xai-abc123", "[redacted]"],
    [
      "a Google key in a URL",
      "https://x.test/v1?key=AIzaSyD-a_b&alt=sse",
      "https://x.test/v1?key=[redacted]&alt=sse",
    ],
    ["a key behind a percent-encoded byte", "q=%20sk-abcd1234%22", "q=%20[redacted]%22"],
    ["a bearer token", "Authorization: Bearer abc.def-12~3+4/5==", "Authorization: Bearer [redacted]"],
    ["a bearer token sent twice", "got 'Bearer Bearer tok123456'", "got 'Bearer Bearer [redacted]'"],
    ["a bearer token with escaped slashes", '"bearer abc\\/def1"', '"bearer [redacted]"'],
    ["an organisation", "in organization org-abc123 on", "in organization [redacted] on"],
    ["an organisation of Groq", "in organization `org_01hxyz` on", "in organization `[redacted]` on"],
    ["an organisation of Anthropic", `your organization (${uuid}) of`, "your organization ([redacted]) of"],
    ["a project", "Project `proj_aBcDeF` has", "Project `[redacted]` has"],
    ["a project of Google", "consumer 'project_number:123456789'", "consumer 'project_number:[redacted]'"],
    ["a key after an escaped line break", '{"m":"key:\\nsk-abcd1234"}', '{"m":"key:\\n[redacted]"}'],
    [
      "a key in JSON quoted in JSON",
      '"{\\"m\\":\\"x\\\\nsk-abcd1234\\"}"',
      '"{\\"m\\":\\"x\\\\n[redacted]\\"}"',
    ],
    ["several at once", "sk-aaaa1111, org-bbb222; proj_ccc333", "[redacted], [redacted]; [redacted]"],
    ["what stands before a key in the same word", "org-abc123-sk-abcd", "[redacted]"],
  ])("%s", (_, text, expected) => {
    expect(scrub(text)).toBe(expected);
  });
});

describe("keeps readable", () => {
  it("OpenAI's message about a wrong key", () => {
    expect(
      scrub(
        "Incorrect API key provided: sk-12***ef. You can find your API key at https://platform.openai.com/account/api-keys.",
      ),
    ).toBe(
      "Incorrect API key provided: [redacted]. You can find your API key at https://platform.openai.com/account/api-keys.",
    );
  });

  it("OpenAI's message about a rate limit", () => {
    expect(
      scrub(
        "Rate limit reached for gpt-4o in organization org-abc123 on tokens per min (TPM): Limit 30000, Used 29950, Requested 120. Please try again in 140ms.",
      ),
    ).toBe(
      "Rate limit reached for gpt-4o in organization [redacted] on tokens per min (TPM): Limit 30000, Used 29950, Requested 120. Please try again in 140ms.",
    );
  });

  test.each([
    "You need to provide your API key in an Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)",
    "Missing bearer authentication. Bearer token required, bearer: 401",
    'WWW-Authenticate: Bearer realm="api"',
    "An error occurred (request id req_011CSHoEeqs5C35K2UUqR7Fy), req-0123-abcd-sk",
    "chatcmpl-AbC123xyz resp_68ab12 batch_abc123 file-abc123",
    `Include the request ID ${uuid} in your message`,
    "The task-force for risk-averse disk-1234 uses sk-SK and API keys that start with sk-.",
    "The model xai-grok-4 does not exist, nor does ft:gpt-4o:my-org:custom:abc",
    "org-wide limits; organization-level; pass proj_name or org_id",
    "***Note*** that **max_tokens** is 2*3",
    "",
  ])("%s", (text) => {
    expect(scrub(text)).toBe(text);
  });
});

const secrets = [
  "sk-abcdEFGH1234",
  "sk-12***ef",
  "sk-ant-api03-x_Y-z9",
  "gsk_a1b2c3d4",
  "xai-a1b2c3d4",
  "AIzaSyA1b2C3d4",
  "org-a1b2c3d4",
  "proj_a1b2c3d4",
  "Bearer a1b2c3d4",
  `organization ${uuid}`,
];

/** Text with secrets among characters that have a meaning in JSON or in the patterns. */
const laced = fc
  .array(
    fc.oneof(
      fc.constantFrom(...secrets),
      fc.string({ unit: "grapheme", maxLength: 8 }),
      fc.string({ unit: fc.constantFrom(...'"\\/\n\t\b\r :,.-_*%{}[]abfnrtu01sk') }),
      fc.constantFrom("bearer", "Bearer ", "sk-", "org", "project_id", "\\u0041", "%20", "***"),
    ),
    { maxLength: 8 },
  )
  .map((parts) => parts.join(""));

describe("a JSON text", () => {
  const json = fc.letrec((tie) => ({
    value: fc.oneof(
      { depthSize: "small" },
      laced,
      fc.double({ noNaN: true, noDefaultInfinity: true }),
      fc.integer(),
      fc.boolean(),
      fc.constant(null),
      fc.array(tie("value"), { maxLength: 3 }),
      fc.array(fc.tuple(laced, tie("value")), { maxLength: 3 }),
    ),
  })).value;

  /** The value with every string replaced by the same one. */
  const shape = (value: unknown): unknown =>
    JSON.parse(JSON.stringify(value), (_, part) => (typeof part === "string" ? "" : part));

  it("stays JSON of the same structure", () => {
    fc.assert(
      fc.property(json, (value) => {
        expect(shape(JSON.parse(scrub(JSON.stringify(value))))).toEqual(shape(value));
      }),
      { numRuns: 2000 },
    );
  });

  it("stays JSON with such keys, also when quoted in JSON", () => {
    fc.assert(
      fc.property(laced, json, (key, value) => {
        const text = JSON.stringify({ [key]: 12345678 });
        expect(Object.values(JSON.parse(scrub(text)))).toEqual([12345678]);
        expect(typeof JSON.parse(scrub(JSON.stringify(JSON.stringify(value))))).toBe("string");
      }),
      { numRuns: 2000 },
    );
  });

  it("never keeps a number or a bare word from its place", () => {
    const text = '{"bearer": 12345678, "Bearer":true,"organization":88888888,"project_number":123456}';
    expect(scrub(text)).toBe(text);
  });
});

it("leaves nothing of a secret, whatever stands around it", () => {
  const around = fc.string({ unit: fc.constantFrom(..."\"'`\\/\n\t :;,.()[]{}<>=?&") });
  fc.assert(
    fc.property(around, fc.constantFrom(...secrets), around, (before, secret, behind) => {
      const hidden = secret.replace(/^(?:Bearer|organization) /, "");
      expect(scrub(before + secret + behind)).not.toContain(hidden);
      expect(scrub(JSON.stringify(before + secret + behind))).not.toContain(hidden);
    }),
    { numRuns: 1000 },
  );
});

it("changes nothing the second time", () => {
  fc.assert(
    fc.property(laced, (text) => {
      expect(scrub(scrub(text))).toBe(scrub(text));
    }),
    { numRuns: 2000 },
  );
});

describe("ends soon on a megabyte of", () => {
  test.each([
    "sk-",
    "org-",
    "xai-gro",
    "AIza",
    "req_",
    "a",
    "A1",
    "*",
    ".",
    "sk-ab***",
    "org-org_proj_",
    "bearer",
    "bearer ",
    "Bearer====",
    "Bearer  +%20",
    "bearer a\\",
    "x\\/",
    "\\",
    "\\u",
    "\\n",
    "%2",
    "organization ",
    "org_id=((((",
    `org ${uuid.slice(0, -1)} `,
    "project_number:",
    "plain words and ",
  ])("%j", (part) => {
    const text = part.repeat(megabyte / part.length);
    // One such input in front of a secret and one behind it, so that a match is found and one fails.
    expect(scrub(`${text} sk-abcdEFGH1234 ${text}`)).not.toContain("sk-abcdEFGH1234");
  });
});
