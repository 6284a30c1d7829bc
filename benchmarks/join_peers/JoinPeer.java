import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.apache.kafka.streams.state.Stores;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.Cache;
import org.rocksdb.LRUCache;
import org.rocksdb.Options;

/** The join of benchmarks/join.py in Kafka Streams: a Processor with a persistent store, the cheapest of its ways to join. */
public class JoinPeer {
  static final byte[] JOINED = "{\"status\":\"joined\",\"interaction\":".getBytes();
  static final byte[] OUTCOME = ",\"outcome\":".getBytes();
  static final byte[] END = "}".getBytes();

  static byte[] join(byte[]... parts) {
    int size = 0;
    for (byte[] part : parts) size += part.length;
    byte[] out = new byte[size];
    size = 0;
    for (byte[] part : parts) {
      System.arraycopy(part, 0, out, size, part.length);
      size += part.length;
    }
    return out;
  }

  /** 32 MiB of block cache and small write buffers for all stores, as treadle's worker has. */
  public static class Rocks implements RocksDBConfigSetter {
    static final Cache CACHE = new LRUCache(32 << 20);

    public void setConfig(String name, Options options, Map<String, Object> configs) {
      BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
      table.setBlockCache(CACHE);
      options.setTableFormatConfig(table);
      options.setWriteBufferSize(16 << 20);
      options.setMaxWriteBufferNumber(2);
    }

    public void close(String name, Options options) {}
  }

  /** State of a key: 'I' or 'O' and the event's bytes while the other one is missing, 'D' when it was joined. */
  static class Join implements Processor<byte[], byte[], byte[], byte[]> {
    final String interactions;
    ProcessorContext<byte[], byte[]> context;
    KeyValueStore<Bytes, byte[]> state;

    Join(String interactions) {
      this.interactions = interactions;
    }

    public void init(ProcessorContext<byte[], byte[]> context) {
      this.context = context;
      state = context.getStateStore("state");
    }

    public void process(Record<byte[], byte[]> record) {
      byte kind = (byte) (context.recordMetadata().get().topic().equals(interactions) ? 'I' : 'O');
      Bytes key = Bytes.wrap(record.key());
      byte[] known = state.get(key);
      if (known == null) {
        state.put(key, join(new byte[] {kind}, record.value()));
      } else if (known[0] != 'D' && known[0] != kind) {
        byte[] other = Arrays.copyOfRange(known, 1, known.length);
        byte[] interaction = kind == 'I' ? record.value() : other;
        byte[] outcome = kind == 'I' ? other : record.value();
        context.forward(record.withValue(join(JOINED, interaction, OUTCOME, outcome, END)));
        state.put(key, join(new byte[] {'D'}, interaction, outcome)); // kept for corrections, as treadle keeps a row
      }
    }
  }

  public static void main(String[] args) {
    Map<String, String> env = System.getenv();
    Properties p = new Properties();
    p.put("application.id", env.get("RUN"));
    p.put("bootstrap.servers", env.get("SERVERS"));
    p.put("state.dir", env.get("DATA"));
    p.put("default.key.serde", Serdes.ByteArray().getClass());
    p.put("default.value.serde", Serdes.ByteArray().getClass());
    p.put("processing.guarantee", env.get("GUARANTEE"));
    p.put("num.stream.threads", "2");
    p.put("statestore.cache.max.bytes", 64 << 20);
    p.put("rocksdb.config.setter", Rocks.class);
    p.put("topology.optimization", "all");
    p.put("auto.offset.reset", "earliest");
    p.put("max.poll.records", 4000);
    p.put("max.partition.fetch.bytes", 4 << 20);
    p.put("batch.size", 1 << 20);
    p.put("linger.ms", "20");
    p.put("buffered.records.per.partition", 4000);
    StreamsBuilder builder = new StreamsBuilder();
    Serde<byte[]> raw = Serdes.ByteArray();
    String interactions = env.get("INTERACTIONS");
    builder.addStateStore(
        Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore("state"), Serdes.Bytes(), raw).withCachingEnabled());
    builder.<byte[], byte[]>stream(List.of(interactions, env.get("OUTCOMES")))
        .process(() -> new Join(interactions), "state")
        .to(env.get("OUT"));
    KafkaStreams streams = new KafkaStreams(builder.build(p), p);
    streams.setUncaughtExceptionHandler(
        problem -> {
          problem.printStackTrace();
          return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
    Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
    streams.start();
  }
}
