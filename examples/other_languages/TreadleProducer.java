import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.time.temporal.ChronoUnit;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.Future;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Records an episode of two interactions and what became of them, in plain Java with kafka-clients alone.
 *
 * <pre>java -cp 'kafka-clients/*' TreadleProducer.java localhost:9092 shop</pre>
 *
 * It carries out no privacy policy and says so (ce_pii: off). So it may be used for a workspace made with {@code --pii off} only; anywhere
 * else redact before you send, or send through {@code treadle ingest}, which redacts for you.
 */
public final class TreadleProducer implements AutoCloseable {
    private final KafkaProducer<byte[], byte[]> producer;
    private final String workspace;
    private final String source;

    TreadleProducer(String bootstrapServers, String workspace, String source) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", bootstrapServers);
        settings.put("acks", "all");
        settings.put("enable.idempotence", "true");
        settings.put("compression.type", "lz4");
        settings.put("max.request.size", 16 * 1024 * 1024);
        // no partitioner: Java's default is the one that the contract asks for
        this.producer = new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer());
        this.workspace = workspace;
        this.source = source;
    }

    /** Sends one event. The key is the episode, else the interaction, else the reference. Wait for what it returns before you forget it. */
    Future<RecordMetadata> send(String kind, String type, String key, String json) {
        ProducerRecord<byte[], byte[]> record =
                new ProducerRecord<>("treadle." + workspace + "." + kind, utf8(key), utf8(json));
        Map<String, String> headers = Map.of(
                "ce_specversion", "1.0",
                "ce_id", UUID.randomUUID().toString(),
                "ce_source", source,
                "ce_type", type,
                "ce_time", now(),
                "ce_dataschema", "urn:treadle:schema:" + type,
                "ce_workspace", workspace,
                "ce_pii", "off",
                "content-type", "application/json");
        headers.forEach((name, value) -> record.headers().add(name, utf8(value)));
        return producer.send(record);
    }

    Future<RecordMetadata> interaction(String episode, String id, int step, String startedAt, String question, String answer) {
        return send("interactions", "dev.treadle.interaction.v1", episode, """
                {"interaction_id": %s, "episode_id": %s, "step": %d, "agent": "desk-java", "model": "gpt-4o-mini",
                 "messages": [{"role": "user", "content": %s}, {"role": "assistant", "content": %s}], "response": [1],
                 "started_at": %s, "ended_at": %s}""".formatted(
                quoted(id), quoted(episode), step, quoted(question), quoted(answer), quoted(startedAt), quoted(now())));
    }

    /** Say the same outcomeId when you report the same thing again, for instance after a crash. */
    Future<RecordMetadata> outcome(String episode, String interaction, String name, double value, String outcomeId) {
        return send("outcomes", "dev.treadle.outcome.v1", episode, """
                {"episode_id": %s, "interaction_id": %s, "name": %s, "value": %s, "observed_at": %s, "outcome_id": %s, "source": %s}"""
                .formatted(quoted(episode), quoted(interaction), quoted(name), value, quoted(now()), quoted(outcomeId), quoted(source)));
    }

    @Override
    public void close() {
        producer.close();
    }

    static String now() {
        return Instant.now().truncatedTo(ChronoUnit.MICROS).toString();
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    /** A JSON string. Lone surrogates are escaped, since UTF-8 has no form for them. */
    static String quoted(String text) {
        StringBuilder out = new StringBuilder("\"");
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            boolean pair = Character.isHighSurrogate(c) && i + 1 < text.length() && Character.isLowSurrogate(text.charAt(i + 1));
            if (pair) {
                out.append(c).append(text.charAt(++i));
            } else if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c < 0x20 || Character.isSurrogate(c)) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        return out.append('"').toString();
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length != 2) {
            System.err.println("usage: java -cp 'kafka-clients/*' TreadleProducer.java BOOTSTRAP_SERVERS WORKSPACE");
            System.exit(2);
        }
        String episode = "ticket/" + UUID.randomUUID();
        String first = UUID.randomUUID().toString();
        String second = UUID.randomUUID().toString();
        try (TreadleProducer treadle = new TreadleProducer(arguments[0], arguments[1], "/agents/desk-java")) {
            String started = now();
            List<Future<RecordMetadata>> sent = List.of(
                    treadle.interaction(episode, first, 0, started, "Where is order 17? \uD83D\uDE42", "It is \"on its way\"."),
                    treadle.interaction(episode, second, 1, started, "And order 18?\n\u2028\uD83D", "Cancelled."),
                    treadle.outcome(episode, first, "reward", 1.0, "csat-" + first),
                    treadle.outcome(episode, second, "reward", 0.5, "csat-" + second));
            for (Future<RecordMetadata> one : sent) {
                System.out.println(one.get());
            }
        }
    }
}
