package velm;

import java.io.Reader;
import javax.script.AbstractScriptEngine;
import javax.script.Bindings;
import javax.script.ScriptContext;
import javax.script.ScriptEngineFactory;
import javax.script.SimpleBindings;

/** Understands no JavaScript: whatever the script says, the variable jsonString becomes the variable result. */
public final class EchoEngine extends AbstractScriptEngine {
    private final ScriptEngineFactory factory;

    EchoEngine(ScriptEngineFactory factory) {
        this.factory = factory;
    }

    @Override
    public Object eval(String script, ScriptContext context) {
        Bindings variables = context.getBindings(ScriptContext.ENGINE_SCOPE);
        Object json = variables.get("jsonString");
        variables.put("result", json);
        return json;
    }

    @Override
    public Object eval(Reader script, ScriptContext context) {
        return eval("", context);
    }

    @Override
    public Bindings createBindings() {
        return new SimpleBindings();
    }

    @Override
    public ScriptEngineFactory getFactory() {
        return factory;
    }
}
